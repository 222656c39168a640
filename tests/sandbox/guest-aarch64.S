/* The same as guest-x86_64.S, for the 64-bit ARM. */
	.globl	_start
_start:
	ldr	x0, [sp]
	cmp	x0, 3
	b.lo	init
	ldr	x19, [sp, 16]
	ldrb	w19, [x19]
	ldr	x1, [sp, 24]
	cmp	w19, 0x6b
	b.eq	kill
	cmp	w19, 0x6d
	b.eq	mode
	cmp	w19, 0x73
	b.eq	start
	cmp	w19, 0x64
	b.eq	mkdir
	sub	sp, sp, 65536
	mov	w2, 0x100		/* O_RDONLY | O_NOCTTY */
	orr	w4, w19, 0x20
	cmp	w4, 0x77
	b.ne	1f
	mov	w2, 0x141		/* O_WRONLY | O_CREAT | O_NOCTTY */
1:	orr	w2, w2, 0x80000		/* O_CLOEXEC */
	tbz	w19, 5, 2f
	orr	w2, w2, 0x800		/* O_NONBLOCK */
2:	mov	x0, -100		/* AT_FDCWD */
	mov	w3, 0666
	mov	x8, 56			/* openat */
	svc	0
	tbnz	x0, 63, fail
	mov	x20, x0			/* from */
	mov	x1, sp
	mov	x8, 80			/* fstat */
	svc	0
	tbnz	x0, 63, fail
	ldr	w5, [sp, 16]		/* st_mode */
	and	w5, w5, 0xf000
	mov	x0, 21			/* EISDIR */
	cmp	w5, 0x4000
	b.eq	done
	tbz	w19, 5, 2f
	mov	x0, 200
	cmp	w5, 0x8000		/* a regular file */
	b.ne	done
2:	mov	x21, 1			/* to */
	orr	w19, w19, 0x20
	cmp	w19, 0x77
	b.ne	read
	mov	x21, x20
	mov	x20, 0
	cmp	w5, 0x8000
	b.ne	read
	mov	x0, x21
	mov	x1, 0
	mov	x8, 46			/* ftruncate */
	svc	0
	tbnz	x0, 63, fail
read:	mov	x0, x20
	mov	x1, sp
	mov	x2, 65536
	mov	x8, 63			/* read */
	svc	0
	tbnz	x0, 63, fail
	cbz	x0, done
	mov	x22, x0
	mov	x23, sp
write:	mov	x0, x21
	mov	x1, x23
	mov	x2, x22
	mov	x8, 64			/* write */
	svc	0
	tbnz	x0, 63, fail
	add	x23, x23, x0
	subs	x22, x22, x0
	b.ne	write
	b	read
fail:	neg	x0, x0
done:	mov	x8, 94			/* exit_group */
	svc	0
mkdir:	add	x20, sp, 24
	mov	x0, 0
3:	ldr	x1, [x20], 8
	cbz	x1, 3f
	mov	x0, -100		/* AT_FDCWD */
	mov	w2, 0777
	mov	x8, 34			/* mkdirat */
	svc	0
	b	3b
3:	cmn	x0, 17			/* EEXIST */
	b.ne	fail
	mov	x0, 0
	b	done
mode:	bl	number
	mov	x2, x0
	ldr	x1, [sp, 32]
	mov	x0, -100		/* AT_FDCWD */
	mov	x8, 53			/* fchmodat */
	svc	0
	b	fail
kill:	bl	number
	mov	x21, x0
	add	x20, sp, 32
4:	ldr	x1, [x20], 8
	mov	x0, 0
	cbz	x1, done
	bl	number
	mov	x1, x21
	mov	x8, 129			/* kill */
	svc	0
	b	4b
number:	mov	x0, 0			/* of the digits at x1 */
	mov	x3, 10
5:	ldrb	w2, [x1], 1
	subs	w2, w2, 48
	b.mi	6f
	madd	x0, x0, x3, x2
	b	5b
6:	ret
start:	str	xzr, [sp, -16]!		/* where the child, which shares our memory, says why not */
	mov	x0, 0x4111		/* CLONE_VM | CLONE_VFORK | SIGCHLD */
	mov	x1, 0
	mov	x8, 220			/* clone */
	svc	0
	tbnz	x0, 63, fail
	cbnz	x0, 9f
	mov	x0, -100		/* AT_FDCWD */
	adr	x1, null
	mov	w2, 0x80000		/* O_RDWR | O_CLOEXEC */
	orr	w2, w2, 2
	mov	x8, 56			/* openat */
	svc	0
	tbnz	x0, 63, 8f
	mov	x20, x0
	mov	x1, 0
	mov	x2, 0
7:	mov	x0, x20
	mov	x8, 24			/* dup3 */
	svc	0
	add	x1, x1, 1
	cmp	x1, 3
	b.lo	7b
	add	x1, sp, 40
	ldr	x0, [x1]
	ldr	x2, [sp, 16]
	add	x2, x1, x2, lsl 3
	sub	x2, x2, 8
	mov	x8, 221			/* execve */
	svc	0
8:	str	x0, [sp]
	mov	x8, 93			/* exit */
	svc	0
9:	ldr	x0, [sp]
	tbnz	x0, 63, fail
init:	mov	x0, 1			/* SIG_IGN */
	stp	x0, xzr, [sp, -32]!	/* sa_handler, sa_flags */
	stp	xzr, xzr, [sp, 16]
	mov	x0, 17			/* SIGCHLD */
	mov	x1, sp
	mov	x2, 0
	mov	x3, 8
	mov	x8, 134			/* rt_sigaction */
	svc	0
	mov	x0, 1
	mov	x1, sp			/* the byte 1 */
	mov	x2, 1
	mov	x8, 64			/* write */
	svc	0
3:	mov	x0, 0
	mov	x1, 0
	mov	x2, 0
	mov	x3, 0
	mov	x4, 8
	mov	x8, 73			/* ppoll */
	svc	0
	b	3b
null:	.asciz	"/dev/null"
