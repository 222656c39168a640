/* The guest's own program: its init, what copies files, and the agent that does what is asked of files for as long as
   it is wanted. `nucleus_gvisor.runtime.guest` says what it does.

   It is linked with nothing, and has neither data nor a heap: all that it writes to is its stack. Its exit status is
   errno, or SPECIAL for what is no regular file. tests/sandbox/build_guest.py makes the bytes of it. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, CLOSE = 3, KILL = 62, VFORK = 58, EXIT = 60, EXECVE = 59, SIGACTION = 13, GETDENTS = 217,
       EXIT_GROUP = 231, OPENAT = 257, MKDIRAT = 258, UNLINKAT = 263, SYMLINKAT = 266, READLINKAT = 267, FCHMODAT = 268,
       FCHMOD = 91, FTRUNCATE = 77, DUP3 = 292, STATX = 332, PPOLL = 271, RENAMEAT = 264, PRCTL = 157,
       DIRECTORY = 0x10000, NOFOLLOW = 0x20000 };
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
       FCHMODAT = 53, FCHMOD = 52, FTRUNCATE = 46, DUP3 = 24, STATX = 291, PPOLL = 73, RENAMEAT = 38,
       PRCTL = 167, DIRECTORY = 0x4000, NOFOLLOW = 0x8000 };
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

enum { HERE = -100, EMPTY_PATH = 0x1000, SYMLINK_NOFOLLOW = 0x100, REMOVEDIR = 0x200 };	/* fcntl.h, AT_ */
enum { WRONLY = 1, RDWR = 2, CREAT = 0100, EXCL = 0200, NOCTTY = 0400, NONBLOCK = 04000, CLOEXEC = 02000000 };
enum { NOENT = 2, EXIST = 17, ISDIR = 21, PIPE = 32, NAMETOOLONG = 36, BADMSG = 74 };
enum { TYPE = 0170000, IS_DIRECTORY = 0040000, IS_FILE = 0100000, IS_LINK = 0120000 };
enum { SPECIAL = 200, SIZE = 1 << 16, LONGEST = 4096, DEEPEST = 256 };

/* statx(2): the same on every machine, as stat(2) is not. */
struct status {
	u32 mask, block_size;
	u64 attributes;
	u32 links, uid, gid;
	u16 mode, none;
	u64 inode, size, blocks, known, accessed[2], born[2], changed[2];
	long seconds;			/* of the last modification */
	u32 nanoseconds;
	u8 others[256 - 124];
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
	u8 kind, flags;
	u16 length;
	u32 mode;
};
/* What the agent tells of a file: its name in the directory that was asked for, and where it leads, follow. */
struct told {
	u16 name, target;
	u32 mode, uid, gid;
	u64 size;
	long seconds;
	u32 nanoseconds, none;
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

static long look(int fd, const char *name, int flags, struct status *status)
{
	return call(STATX, fd, (long)name, flags, 0x7ff /* STATX_BASIC_STATS */, (long)status);
}

static long mode_of(int fd, const char *name, int flags)
{
	struct status status;
	long answer = look(fd, name, flags, &status);
	return answer < 0 ? answer : status.mode;
}

static int is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
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

static long open_file(const char *path, int writes, int any)
{
	int flags = NOCTTY | CLOEXEC | (writes ? WRONLY | CREAT : 0) | (any ? 0 : NONBLOCK /* a FIFO makes nobody wait */);
	long file = call(OPENAT, HERE, (long)path, flags, 0666, 0);
	if (file < 0)
		return file;
	long answer = mode_of(file, "", EMPTY_PATH), type = answer & TYPE;
	if (answer >= 0 && type == IS_DIRECTORY)
		answer = -ISDIR;
	else if (answer >= 0 && type != IS_FILE)
		answer = any ? 0 : -SPECIAL;
	else if (answer >= 0 && writes)
		answer = call(FTRUNCATE, file, 0, 0, 0, 0);
	if (answer >= 0)
		return file;
	call(CLOSE, file, 0, 0, 0, 0);
	return answer;
}

static void copy_file(char how, const char *path)
{
	u8 data[SIZE];
	int writes = (how | 0x20) == 'w', file = done(open_file(path, writes, !(how & 0x20)));
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
			if (is_dots(name))
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

/* The pieces of a file, all of them, also when one cannot be written: errno then. */
static long take_pieces(struct tree *tree, int file)
{
	long answer = file;
	u32 size;
	for (take(tree, &size, 4); size; take(tree, &size, 4)) {
		while (size) {
			need(tree, 1);
			u32 here = tree->end - tree->begin < size ? tree->end - tree->begin : size;
			if (answer >= 0)
				answer = call(WRITE, file, (long)tree->data + tree->begin, here, 0, 0);
			if (answer >= 0)
				here = answer;
			tree->begin += here;
			size -= here;
		}
	}
	return answer;
}

static void take_file(struct tree *tree, int root, u32 mode)
{
	make_room(tree, root);
	int flags = WRONLY | CREAT | EXCL | NOFOLLOW | CLOEXEC;
	int file = made(tree, call(OPENAT, root, (long)tree->name, flags, 0600, 0));
	made(tree, take_pieces(tree, file));
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

static void take_frame(struct tree *tree, struct frame *frame)
{
	take(tree, frame, sizeof *frame);
	if (frame->length > LONGEST)
		leave(BADMSG);
	take(tree, tree->name, frame->length);
	tree->name[tree->length = frame->length] = 0;
}

static void take_target(struct tree *tree, char *target)
{
	u32 size;
	take(tree, &size, 4);
	if (size >= LONGEST)
		leave(BADMSG);
	take(tree, target, size);
	target[size] = 0;
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
		take_frame(&tree, &frame);
		if (frame.kind == 'd') {
			if (frame.length)	/* the root is there */
				make_directory(&tree, root);
		} else if (frame.kind == 'f') {
			take_file(&tree, root, frame.mode);
		} else if (frame.kind == 'l') {
			char target[LONGEST];
			take_target(&tree, target);
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

/* ---- the agent: one request after the other ---- */

/* What is answered lies in data from 4 on: its length comes before it. */
static void send_piece(struct tree *out)
{
	u32 size = out->end - 4;
	copy(out->data, &size, 4);
	flush(out);
	out->end = 4;
}

static u8 *room(struct tree *out, u32 size)
{
	if (out->end + size + 4 > SIZE)
		send_piece(out);
	return out->data + out->end;
}

/* 0, or an errno that is negative, is the end of an answer: in one write with the last piece. */
static void finish(struct tree *out, long answer)
{
	int status = answer < 0 ? answer : 0;
	u32 size = out->end - 4;
	if (size)
		copy(out->data, &size, 4);
	else
		out->end = 0;
	copy(out->data + out->end, &status, 4);
	out->end += 4;
	flush(out);
	out->end = 4;
}

static long answer_file(struct tree *out, const char *path)
{
	long file = open_file(path, 0, 0), got;
	if (file < 0)
		return file;
	do {
		u8 *place = room(out, LONGEST);
		got = call(READ, file, (long)place, SIZE - 4 - out->end, 0, 0);
		out->end += got < 0 ? 0 : got;
	} while (got > 0);
	call(CLOSE, file, 0, 0, 0, 0);
	return got;
}

static long write_file(struct tree *in)
{
	int file = open_file(in->name, 1, 0);
	long answer = take_pieces(in, file), closed = file < 0 ? 0 : call(CLOSE, file, 0, 0, 0, 0);
	return answer < 0 ? answer : closed;
}

static long answer_status(struct tree *out, int directory, const char *path, const char *name, int flags)
{
	struct status status;
	long answer = look(directory, path, flags, &status);
	if (answer < 0)
		return answer;
	u32 size = length(name);
	u8 *place = room(out, sizeof(struct told) + size + LONGEST);
	struct told told = { size, 0, status.mode, status.uid, status.gid, status.size, status.seconds,
			     status.nanoseconds, 0 };
	if ((status.mode & TYPE) == IS_LINK) {
		answer = call(READLINKAT, directory, (long)path, (long)place + sizeof told + size, LONGEST, 0);
		told.target = answer < 0 ? 0 : answer;	/* some of /proc are there, and not to be read */
	}
	copy(place, &told, sizeof told);
	copy(place + sizeof told, name, size);
	out->end += sizeof told + size + told.target;
	return 0;
}

static long answer_list(struct tree *out, const char *path)
{
	u8 entries[4096] __attribute__((aligned(8)));
	int directory = call(OPENAT, HERE, (long)path, DIRECTORY | CLOEXEC, 0, 0);
	long size, answer = 0;
	if (directory < 0)
		return directory;
	while (!answer && (size = call(GETDENTS, directory, (long)entries, sizeof entries, 0, 0)) > 0) {
		for (long at = 0; !answer && at < size; at += ((struct entry *)(entries + at))->size) {
			const char *name = ((struct entry *)(entries + at))->name;
			if (!is_dots(name))
				answer = answer_status(out, directory, name, name, SYMLINK_NOFOLLOW);
			if (answer == -NOENT)
				answer = 0;	/* it has gone: the guest lives meanwhile */
		}
	}
	call(CLOSE, directory, 0, 0, 0, 0);
	return answer ? answer : size;
}

static int nobody_waits(void)
{
	struct { int fd; short events, happened; } end = { 1, 0, 0 };
	long no_time[2] = { 0, 0 };
	return call(PPOLL, (long)&end, 1, (long)no_time, 0, 0) > 0;
}

static long remove_at(int above, const char *name, int whole, u32 depth)
{
	long answer = call(UNLINKAT, above, (long)name, 0, 0, 0);
	if (answer != -ISDIR)
		return answer;
	while (whole) {
		u8 entries[4096] __attribute__((aligned(8)));
		int directory = call(OPENAT, above, (long)name, DIRECTORY | NOFOLLOW | CLOEXEC, 0, 0);
		long size = directory, found = 0;
		while (size >= 0 && (size = call(GETDENTS, directory, (long)entries, sizeof entries, 0, 0)) > 0) {
			for (long at = 0; at < size; at += ((struct entry *)(entries + at))->size) {
				const char *next = ((struct entry *)(entries + at))->name;
				if (is_dots(next))
					continue;
				found = 1;
				answer = depth == DEEPEST ? -NAMETOOLONG : nobody_waits() ? -PIPE
					 : remove_at(directory, next, 1, depth + 1);
				if (answer < 0 && answer != -NOENT) {
					call(CLOSE, directory, 0, 0, 0, 0);
					return answer;
				}
			}
		}
		if (directory >= 0)
			call(CLOSE, directory, 0, 0, 0, 0);
		if (size < 0)
			return size;
		whole = found;	/* one that changes while it is read may not have told all */
	}
	return call(UNLINKAT, above, (long)name, REMOVEDIR, 0, 0);
}

static long serve_one(struct tree *in, struct tree *out, struct frame *frame)
{
	const char *name = in->name;
	char target[LONGEST];
	switch (frame->kind) {
	case 'r':
		return answer_file(out, name);
	case 'w':
		return write_file(in);
	case 'l':
		return answer_list(out, name);
	case 's':
		return answer_status(out, HERE, name, "", frame->flags ? 0 : SYMLINK_NOFOLLOW);
	case 'd':
		return call(MKDIRAT, HERE, (long)name, frame->mode, 0, 0);
	case 'm':
		return call(FCHMODAT, HERE, (long)name, frame->mode, 0, 0);
	case 'u':
		return remove_at(HERE, name, frame->flags, 0);
	case 'v':
		take_target(in, target);
		return call(RENAMEAT, HERE, (long)name, HERE, (long)target, 0);
	}
	leave(BADMSG);
}

static __attribute__((noreturn)) void serve(void)
{
	struct tree in, out;
	struct frame frame;
	in.begin = in.end = 0;
	out.end = 4;
	call(PRCTL, 4 /* PR_SET_DUMPABLE */, 0, 0, 0, 0);	/* no other process of the same user traces it */
	for (;;) {
		take_frame(&in, &frame);
		finish(&out, serve_one(&in, &out, &frame));
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
	if (count == 2)
		serve();
	if (count < 2)
		wait();
	char how = words[1][0];
	if (how == 's') {
		start(words + 2, stack + 2 + count);
		wait();
	}
	if ((how | 0x20) == 'g')
		get(how, words[2]);
	if (how == 'p')
		put_tree(words[2]);
	if (how == 'k') {
		for (char **pid = words + 3; *pid; pid++)
			call(KILL, number(*pid), number(words[2]), 0, 0, 0);
		leave(0);
	}
	copy_file(how, words[2]);
	__builtin_unreachable();
}
