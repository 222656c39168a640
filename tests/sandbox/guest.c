/* The guest's own program: its init, and what copies files. `nucleus_gvisor.runtime.guest` says what it does.

   It is linked with nothing, and has neither data nor a heap: all that it writes to is its stack. Its exit status is
   errno, or SPECIAL for what is no regular file. tests/sandbox/build_guest.py makes the bytes of it. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, CLOSE = 3, KILL = 62, VFORK = 58, EXIT = 60, EXECVE = 59, SIGACTION = 13, GETDENTS = 217,
       EXIT_GROUP = 231, OPENAT = 257, MKDIRAT = 258, UNLINKAT = 263, SYMLINKAT = 266, READLINKAT = 267, FCHMODAT = 268,
       FCHMOD = 91, FTRUNCATE = 77, DUP3 = 292, STATX = 332, PPOLL = 271, DIRECTORY = 0x10000, NOFOLLOW = 0x20000 };
__asm__(".section .text.start\n.globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\n");

static inline __attribute__((always_inline)) long call(long number, long a, long b, long c, long d, long e)
{
	register long four __asm__("r10") = d, five __asm__("r8") = e;
	long answer;
	__asm__ volatile("syscall" : "=a"(answer) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(four), "r"(five)
			 : "rcx", "r11", "memory");
	return answer;
}
/* The child runs on our stack until it has executed its program: no return address may lie there. */
#define FORK() call(VFORK, 0, 0, 0, 0, 0)
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, CLOSE = 57, KILL = 129, CLONE = 220, EXIT = 93, EXECVE = 221, SIGACTION = 134,
       GETDENTS = 61, EXIT_GROUP = 94, OPENAT = 56, MKDIRAT = 34, UNLINKAT = 35, SYMLINKAT = 36, READLINKAT = 78,
       FCHMODAT = 53, FCHMOD = 52, FTRUNCATE = 46, DUP3 = 24, STATX = 291, PPOLL = 73, DIRECTORY = 0x4000,
       NOFOLLOW = 0x8000 };
__asm__(".section .text.start\n.globl _start\n_start: mov x0, sp\nbl begin\n");

static inline __attribute__((always_inline)) long call(long number, long a, long b, long c, long d, long e)
{
	register long eight __asm__("x8") = number, zero __asm__("x0") = a, one __asm__("x1") = b, two __asm__("x2") = c,
		 three __asm__("x3") = d, four __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(zero) : "r"(eight), "r"(one), "r"(two), "r"(three), "r"(four) : "memory");
	return zero;
}
#define FORK() call(CLONE, 0x4111 /* CLONE_VM | CLONE_VFORK | SIGCHLD */, 0, 0, 0, 0)
#endif

enum { HERE = -100, EMPTY_PATH = 0x1000, SYMLINK_NOFOLLOW = 0x100 };	/* fcntl.h, AT_ */
enum { WRONLY = 1, RDWR = 2, CREAT = 0100, EXCL = 0200, NOCTTY = 0400, NONBLOCK = 04000, CLOEXEC = 02000000 };
enum { NOENT = 2, EXIST = 17, NOTDIR = 20, ISDIR = 21, NAMETOOLONG = 36, BADMSG = 74 };
enum { TYPE = 0170000, IS_DIRECTORY = 0040000, IS_FILE = 0100000, IS_LINK = 0120000 };
enum { SPECIAL = 200, SIZE = 1 << 16, LONGEST = 4096, DEEPEST = 256 };

/* statx(2): the same on every machine, as stat(2) is not. */
struct status {
	u32 mask, block_size;
	u64 attributes;
	u32 links, uid, gid;
	u16 mode;
	u8 others[256 - 30];
};
struct entry {	/* getdents64(2) */
	u64 inode, offset;
	u16 size;
	u8 type;
	char name[];
};
/* One entry of a tree: what it is, its name from the tree's root, and how long that is. Pieces of a file follow, each
   with its length before it, and 0 at the end; or one such piece, where a link leads. */
struct frame {
	u8 kind, none;
	u16 length;
	u32 mode;
};
struct tree {
	u32 begin, end;			/* of what lies in data */
	u32 length;			/* of the name */
	char name[LONGEST + 1];
	u8 data[SIZE];
};

static __attribute__((noreturn)) void leave(long status)
{
	call(EXIT_GROUP, status < 0 ? -status : status, 0, 0, 0, 0);
	__builtin_unreachable();
}

static long done(long answer)
{
	if (answer < 0)
		leave(answer);
	return answer;
}

static void copy(void *to, const void *from, u64 size)
{
	for (u64 at = 0; at < size; at++)
		((volatile u8 *)to)[at] = ((const u8 *)from)[at];
}

static u32 length(const char *text)
{
	u32 size = 0;
	while (text[size])
		size++;
	return size;
}

static long number(const char *text)
{
	long value = 0;
	while (*text)
		value = value * 10 + *text++ - '0';
	return value;
}

static long mode_of(int fd, const char *name, int flags)
{
	struct status status;
	long answer = call(STATX, fd, (long)name, flags, 2 /* STATX_MODE */ | 1, (long)&status);
	return answer < 0 ? answer : status.mode;
}

static void send(int fd, const u8 *data, u64 size)
{
	while (size) {
		long sent = done(call(WRITE, fd, (long)data, size, 0, 0));
		data += sent;
		size -= sent;
	}
}

/* ---- one file ---- */

static void copy_file(char how, const char *path)
{
	u8 data[SIZE];
	int any = !(how & 0x20), writes = (how | 0x20) == 'w', flags = NOCTTY | CLOEXEC;
	flags |= writes ? WRONLY | CREAT : 0;
	flags |= any ? 0 : NONBLOCK;	/* a FIFO makes nobody wait */
	int file = done(call(OPENAT, HERE, (long)path, flags, 0666, 0));
	long mode = done(mode_of(file, "", EMPTY_PATH)) & TYPE;
	if (mode == IS_DIRECTORY)
		leave(ISDIR);
	if (mode != IS_FILE && !any)
		leave(SPECIAL);
	if (writes && mode == IS_FILE)
		done(call(FTRUNCATE, file, 0, 0, 0, 0));
	for (;;) {
		long got = done(call(READ, writes ? 0 : file, (long)data, SIZE, 0, 0));
		if (!got)
			leave(0);
		send(writes ? file : 1, data, got);
	}
}

/* ---- a tree, to standard output ---- */

static void flush(struct tree *tree)
{
	send(1, tree->data, tree->end);
	tree->end = 0;
}

static void put(struct tree *tree, const void *data, u32 size)
{
	if (tree->end + size > SIZE)
		flush(tree);
	copy(tree->data + tree->end, data, size);
	tree->end += size;
}

static void tell(struct tree *tree, u8 kind, u32 mode)
{
	struct frame frame = { kind, 0, tree->length, mode };
	put(tree, &frame, sizeof frame);
	put(tree, tree->name, tree->length);
}

static __attribute__((noreturn)) void give_up(struct tree *tree, long status)
{
	tell(tree, 'x', -status);
	flush(tree);
	leave(status);
}

static void send_file(struct tree *tree, int file, u32 mode)
{
	u32 got;
	tell(tree, 'f', mode);
	do {
		if (tree->end + LONGEST > SIZE)
			flush(tree);
		long answer = call(READ, file, (long)tree->data + tree->end + 4, SIZE - tree->end - 4, 0, 0);
		if (answer < 0)
			leave(answer);	/* in the middle of a file: what comes is not a frame */
		got = answer;
		copy(tree->data + tree->end, &got, 4);
		tree->end += 4 + got;
	} while (got);
}

static void send_tree(struct tree *tree, int directory, u32 depth)
{
	u8 entries[4096] __attribute__((aligned(8)));
	u32 above = tree->length;
	long size;
	while ((size = call(GETDENTS, directory, (long)entries, sizeof entries, 0, 0)) > 0) {
		for (long at = 0; at < size; at += ((struct entry *)(entries + at))->size) {
			const char *name = ((struct entry *)(entries + at))->name;
			if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
				continue;
			u32 begin = above + !!above, more = length(name);
			if (begin + more > LONGEST || depth == DEEPEST)
				give_up(tree, -NAMETOOLONG);
			if (above)
				tree->name[above] = '/';
			copy(tree->name + begin, name, more);
			tree->length = begin + more;
			long mode = mode_of(directory, name, SYMLINK_NOFOLLOW), type = mode & TYPE, file = 0;
			if (mode == -NOENT)
				continue;	/* it has gone: the guest lives meanwhile */
			if (mode < 0)
				give_up(tree, mode);
			if (type == IS_LINK) {
				char target[LONGEST];
				long got = call(READLINKAT, directory, (long)name, (long)target, LONGEST, 0);
				u32 count = got;
				if (got < 0)
					give_up(tree, got);
				tell(tree, 'l', mode);
				put(tree, &count, 4);
				put(tree, target, count);
			} else if (type == IS_DIRECTORY || type == IS_FILE) {
				int flags = NOCTTY | CLOEXEC | NONBLOCK | NOFOLLOW | (type == IS_DIRECTORY ? DIRECTORY : 0);
				file = call(OPENAT, directory, (long)name, flags, 0, 0);
				if (file == -NOENT)
					continue;
				if (file < 0)
					give_up(tree, file);
				if (type == IS_FILE) {
					send_file(tree, file, mode);
				} else {
					tell(tree, 'd', mode);
					send_tree(tree, file, depth + 1);
				}
				call(CLOSE, file, 0, 0, 0, 0);
			} else {
				tell(tree, 's', mode);
			}
		}
		tree->length = above;
	}
	tree->length = above;
	if (size < 0)
		give_up(tree, size);
}

static void get(char how, const char *path)
{
	struct tree tree;
	int any = !(how & 0x20);
	tree.end = tree.length = 0;
	int file = done(call(OPENAT, HERE, (long)path, NOCTTY | CLOEXEC | (any ? 0 : NONBLOCK), 0, 0));
	long mode = done(mode_of(file, "", EMPTY_PATH)), type = mode & TYPE;
	if (type == IS_DIRECTORY) {
		tell(&tree, 'd', mode);
		send_tree(&tree, file, 0);
	} else if (type == IS_FILE || any) {
		send_file(&tree, file, mode);
	} else {
		leave(SPECIAL);
	}
	tell(&tree, 'e', 0);
	flush(&tree);
	leave(0);
}

/* ---- a tree, from standard input ---- */

static void need(struct tree *tree, u32 size)
{
	if (tree->end - tree->begin >= size)
		return;
	copy(tree->data, tree->data + tree->begin, tree->end - tree->begin);
	tree->end -= tree->begin;
	tree->begin = 0;
	while (tree->end < size) {
		long got = done(call(READ, 0, (long)tree->data + tree->end, SIZE - tree->end, 0, 0));
		if (!got)
			leave(BADMSG);
		tree->end += got;
	}
}

static void take(struct tree *tree, void *to, u32 size)
{
	need(tree, size);
	copy(to, tree->data + tree->begin, size);
	tree->begin += size;
}

/* Who waits for us hears which entry it was. */
static long made(struct tree *tree, long answer)
{
	if (answer < 0) {
		send(1, (u8 *)tree->name, tree->length);
		leave(answer);
	}
	return answer;
}

/* What was there goes first: a link is not followed, and a program that runs is not written to. */
static void make_room(struct tree *tree, int root)
{
	long answer = call(UNLINKAT, root, (long)tree->name, 0, 0, 0);
	if (answer != -NOENT)
		made(tree, answer);
}

static void take_file(struct tree *tree, int root, u32 mode)
{
	u32 size;
	make_room(tree, root);
	int flags = WRONLY | CREAT | EXCL | NOFOLLOW | CLOEXEC;
	int file = made(tree, call(OPENAT, root, (long)tree->name, flags, 0600, 0));
	for (take(tree, &size, 4); size; take(tree, &size, 4)) {
		while (size) {
			need(tree, 1);
			u32 here = tree->end - tree->begin < size ? tree->end - tree->begin : size;
			long sent = made(tree, call(WRITE, file, (long)tree->data + tree->begin, here, 0, 0));
			tree->begin += sent;
			size -= sent;
		}
	}
	made(tree, call(FCHMOD, file, mode, 0, 0, 0));
	made(tree, call(CLOSE, file, 0, 0, 0, 0));
}

static void make_directory(struct tree *tree, int root)
{
	long answer = call(MKDIRAT, root, (long)tree->name, 0700, 0, 0);
	if (answer == -EXIST && (mode_of(root, tree->name, 0) & TYPE) == IS_DIRECTORY)
		return;
	made(tree, answer);
}

static void put_tree(const char *path)
{
	struct tree tree;
	struct frame frame;
	tree.begin = tree.end = tree.length = 0;
	long answer = call(MKDIRAT, HERE, (long)path, 0700, 0, 0);
	if (answer != -EXIST)
		done(answer);
	int root = done(call(OPENAT, HERE, (long)path, DIRECTORY | CLOEXEC, 0, 0));
	for (;;) {
		take(&tree, &frame, sizeof frame);
		if (frame.length > LONGEST)
			leave(BADMSG);
		take(&tree, tree.name, frame.length);
		tree.name[tree.length = frame.length] = 0;
		if (frame.kind == 'd') {
			if (frame.length)	/* the root is there */
				make_directory(&tree, root);
		} else if (frame.kind == 'f') {
			take_file(&tree, root, frame.mode);
		} else if (frame.kind == 'l') {
			char target[LONGEST];
			u32 size;
			take(&tree, &size, 4);
			if (size >= LONGEST)
				leave(BADMSG);
			take(&tree, target, size);
			target[size] = 0;
			make_room(&tree, root);
			made(&tree, call(SYMLINKAT, (long)target, root, (long)tree.name, 0, 0));
		} else if (frame.kind == 'm') {
			made(&tree, frame.length ? call(FCHMODAT, root, (long)tree.name, frame.mode, 0, 0)
						 : call(FCHMOD, root, frame.mode, 0, 0, 0));
		} else {
			leave(frame.kind == 'e' ? 0 : BADMSG);
		}
	}
}

/* ---- processes ---- */

static void start(char **words, char **variables)
{
	volatile long problem = 0;	/* where the child, which shares our memory, says why not */
	long child = done(FORK());
	if (!child) {
		long null = call(OPENAT, HERE, (long)"/dev/null", RDWR, 0, 0);
		for (int fd = 0; null >= 0 && fd < 3; fd++)
			call(DUP3, null, fd, 0, 0, 0);
		if (null > 2)
			call(CLOSE, null, 0, 0, 0, 0);
		problem = null < 0 ? null : call(EXECVE, (long)words[0], (long)words, (long)variables, 0, 0);
		call(EXIT, 1, 0, 0, 0, 0);
	}
	done(problem);
}

static __attribute__((noreturn)) void wait(void)
{
	u64 ignore[4] = { 1 /* SIG_IGN: no zombies */, 0, 0, 0 };
	u8 ready = 1;
	call(SIGACTION, 17 /* SIGCHLD */, (long)ignore, 0, 8, 0);
	call(WRITE, 1, (long)&ready, 1, 0, 0);
	for (;;)
		call(PPOLL, 0, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) void begin(char **stack)
{
	u64 count = *(u64 *)stack;
	char **words = stack + 1;
	if (count < 3)
		wait();
	char how = words[1][0];
	long answer = 0;
	if (how == 's') {
		start(words + 2, stack + 2 + count);
		wait();
	}
	if ((how | 0x20) == 'g')
		get(how, words[2]);
	if (how == 'p')
		put_tree(words[2]);
	if (how == 'm')
		leave(call(FCHMODAT, HERE, (long)words[3], number(words[2]), 0, 0));
	if (how == 'd') {
		for (char **path = words + 2; *path; path++)
			answer = call(MKDIRAT, HERE, (long)*path, 0777, 0, 0);
		leave(answer == -EXIST ? 0 : answer);
	}
	if (how == 'k') {
		for (char **pid = words + 3; *pid; pid++)
			call(KILL, number(*pid), number(words[2]), 0, 0, 0);
		leave(0);
	}
	copy_file(how, words[2]);
	__builtin_unreachable();
}
