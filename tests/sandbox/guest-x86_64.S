/* The guest's own program. Alone: say that the guest runs, reap orphans, wait for ever.
   r PATH: copy PATH to standard output. w PATH: copy standard input to PATH. The exit status is errno, or 200 when it
   is no regular file; R and W take any but a directory, and wait for it. d PATH...: make each directory, whether it is
   there or not; the exit status is the last one's errno.
   k SIGNAL PID...: send the signal to each, whether it is there or not. m MODE PATH: chmod. All numbers are decimal.
   s PROGRAM ARG...: start it without streams, and then as alone; the exit status is errno where that fails. */
	.intel_syntax noprefix
	.globl	_start
_start:
	cmp	qword ptr [rsp], 3
	jb	init
	mov	rax, [rsp + 16]
	mov	rdi, [rsp + 24]
	cmp	byte ptr [rax], 0x6b
	je	kill
	cmp	byte ptr [rax], 0x6d
	je	mode
	cmp	byte ptr [rax], 0x73
	je	start
	cmp	byte ptr [rax], 0x64
	je	mkdir
	movzx	ebx, byte ptr [rax]
	sub	rsp, 65536
	mov	esi, 0x80100		/* O_RDONLY | O_NOCTTY | O_CLOEXEC */
	mov	eax, ebx
	or	al, 0x20
	cmp	al, 0x77
	jne	1f
	mov	esi, 0x80141		/* O_WRONLY | O_CREAT | O_NOCTTY | O_CLOEXEC */
1:	test	bl, 0x20
	jz	2f
	or	esi, 0x800		/* O_NONBLOCK: a FIFO makes nobody wait */
2:	mov	edx, 0666
	mov	eax, 2			/* open */
	syscall
	test	eax, eax
	js	fail
	mov	r12d, eax		/* from */
	mov	edi, eax
	mov	rsi, rsp
	mov	eax, 5			/* fstat */
	syscall
	test	eax, eax
	js	fail
	mov	eax, [rsp + 24]		/* st_mode */
	and	eax, 0xf000
	mov	ecx, eax
	mov	eax, 21			/* EISDIR */
	cmp	ecx, 0x4000
	je	done
	test	bl, 0x20
	jz	2f
	mov	eax, 200
	cmp	ecx, 0x8000		/* a regular file */
	jne	done
2:	mov	r13d, 1			/* to */
	or	bl, 0x20
	cmp	bl, 0x77
	jne	read
	mov	r13d, r12d
	xor	r12d, r12d
	cmp	ecx, 0x8000
	jne	read
	mov	edi, r13d
	xor	esi, esi
	mov	eax, 77			/* ftruncate */
	syscall
	test	eax, eax
	js	fail
read:	mov	edi, r12d
	mov	rsi, rsp
	mov	edx, 65536
	xor	eax, eax		/* read */
	syscall
	test	eax, eax
	js	fail
	jz	done
	mov	r14d, eax
	mov	rbx, rsp
write:	mov	edi, r13d
	mov	rsi, rbx
	mov	edx, r14d
	mov	eax, 1			/* write */
	syscall
	test	eax, eax
	js	fail
	add	rbx, rax
	sub	r14d, eax
	jnz	write
	jmp	read
fail:	neg	eax
done:	mov	edi, eax
	mov	eax, 231		/* exit_group */
	syscall
mkdir:	lea	rbx, [rsp + 24]
	xor	eax, eax
3:	mov	rdi, [rbx]
	test	rdi, rdi
	jz	3f
	add	rbx, 8
	mov	esi, 0777
	mov	eax, 83			/* mkdir */
	syscall
	jmp	3b
3:	cmp	eax, -17		/* EEXIST */
	jne	fail
	xor	eax, eax
	jmp	done
mode:	call	number
	mov	esi, eax
	mov	rdi, [rsp + 32]
	mov	eax, 90			/* chmod */
	syscall
	jmp	fail
kill:	call	number
	mov	r12d, eax
	lea	rbx, [rsp + 32]
5:	mov	rdi, [rbx]
	xor	eax, eax
	test	rdi, rdi
	jz	done
	add	rbx, 8
	call	number
	mov	edi, eax
	mov	esi, r12d
	mov	eax, 62			/* kill */
	syscall
	jmp	5b
number:	xor	eax, eax		/* of the digits at rdi */
6:	movzx	ecx, byte ptr [rdi]
	sub	ecx, 48
	js	7f
	imul	eax, eax, 10
	add	eax, ecx
	inc	rdi
	jmp	6b
7:	ret
start:	push	0			/* where the child, which shares our memory, says why not */
	mov	eax, 58			/* vfork */
	syscall
	test	eax, eax
	js	fail
	jnz	9f
	lea	rdi, null[rip]
	mov	esi, 0x80002		/* O_RDWR | O_CLOEXEC */
	mov	eax, 2			/* open */
	syscall
	test	eax, eax
	js	8f
	mov	r12d, eax
	xor	esi, esi
7:	mov	edi, r12d
	mov	eax, 33			/* dup2 */
	syscall
	inc	esi
	cmp	esi, 3
	jb	7b
	mov	rdi, [rsp + 32]
	lea	rsi, [rsp + 32]
	mov	rax, [rsp + 8]
	lea	rdx, [rsp + rax * 8 + 24]
	mov	eax, 59			/* execve */
	syscall
8:	mov	[rsp], eax
	mov	eax, 60			/* exit */
	syscall
9:	mov	eax, [rsp]
	test	eax, eax
	js	fail
init:	xor	eax, eax
	push	rax			/* sa_mask */
	push	rax			/* sa_restorer */
	push	rax			/* sa_flags */
	push	1			/* SIG_IGN */
	mov	edi, 17			/* SIGCHLD */
	mov	rsi, rsp
	xor	edx, edx
	mov	r10d, 8
	mov	eax, 13			/* rt_sigaction */
	syscall
	mov	edi, 1
	mov	rsi, rsp		/* the byte 1 */
	mov	edx, 1
	mov	eax, 1			/* write */
	syscall
4:	mov	eax, 34			/* pause */
	syscall
	jmp	4b
null:	.asciz	"/dev/null"
