/* Stands in runsc's place and reports, as one JSON object, what it can do there.
 *
 *   runsc --version | runsc flags          answer as runsc does
 *   runsc --root R ... run --bundle B ID   check, and print the report
 *   noop                                   what copies of this file do: they show that they were executed
 *   say WORD CODE                          as a guest's program: print WORD, exit with CODE
 *
 * ID ends in -PID, a process outside. Each answer is the errno's name, or OK where the call succeeded. Whatever
 * could change the host is asked for in a way that changes nothing even where it is permitted.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define OPENED_ELSEWHERE 300 /* the highest descriptor that is tried for a leak */
#define AT_RECURSIVE_FLAG 0x8000

static char base[4096], container[4096], bundle[4096], runsc_root[4096], temporary[4096];
static char outside[32];
static const char *comma = "";

/* ---- output ---- */

static void text(const char *string) {
    putchar('"');
    for (; *string; string++) {
        unsigned char c = (unsigned char)*string;
        if (c == '"' || c == '\\') putchar('\\');
        if (c < 0x20) printf("\\u%04x", c);
        else putchar(c);
    }
    putchar('"');
}

static void key(const char *name) {
    printf("%s\n", comma);
    text(name);
    printf(": ");
    comma = ",";
}

static void number(const char *name, long value) {
    key(name);
    printf("%ld", value);
}

static void string(const char *name, const char *value) {
    key(name);
    text(value);
}

static void answer(const char *name, int error) {
    string(name, error ? strerrorname_np(error) : "OK");
}

static void open_object(const char *name) {
    key(name);
    putchar('{');
    comma = "";
}

static void close_object(void) {
    putchar('}');
    comma = ",";
}

/* ---- attempts: each returns 0 or an errno ---- */

static int of(long result) {
    return result < 0 ? errno : 0;
}

/* Run `act` in a child, so that what it changes or becomes is gone with it; its errno, or 0 when it executed. */
static int apart(int (*act)(void *), void *argument) {
    int ends[2], error = 0;
    if (pipe2(ends, O_CLOEXEC)) return errno;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(null, 1);
        dup2(null, 2);
        error = act(argument);
        if (write(ends[1], &error, sizeof error) < 0) _exit(1);
        _exit(0);
    }
    close(ends[1]);
    if (read(ends[0], &error, sizeof error) != sizeof error) error = 0; /* closed by execve */
    close(ends[0]);
    waitpid(pid, NULL, 0);
    return error;
}

static int become(void *path) {
    char *argv[] = {path, "noop", NULL};
    execve(path, argv, (char *[]){NULL});
    return errno;
}

static int run(const char *path) {
    return apart(become, (void *)path);
}

struct at {
    int fd;
    const char *path;
};

static int become_at(void *argument) {
    struct at *at = argument;
    char *argv[] = {"true", "noop", NULL};
    syscall(SYS_execveat, at->fd, at->path, argv, (char *[]){NULL}, *at->path ? 0 : AT_EMPTY_PATH);
    return errno;
}

static int load(void *path) {
    char *argv[] = {"ld.so", path, NULL};
    execve("/lib64/ld-linux-x86-64.so.2", argv, (char *[]){NULL});
    return errno;
}

static int map(const char *path, int late) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    void *at = mmap(NULL, 4096, PROT_READ | (late ? 0 : PROT_EXEC), MAP_PRIVATE, fd, 0);
    int error = at == MAP_FAILED ? errno : 0;
    if (!error && late) error = of(mprotect(at, 4096, PROT_READ | PROT_EXEC));
    close(fd);
    return error;
}

static int copy_into(int target) {
    static char piece[1 << 16];
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (self < 0) return errno;
    ssize_t size;
    while ((size = read(self, piece, sizeof piece)) > 0)
        if (write(target, piece, (size_t)size) != size) return errno;
    close(self);
    return of(fchmod(target, 0755));
}

static int copy_to(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    if (fd < 0) return errno;
    int error = copy_into(fd);
    close(fd);
    return error;
}

/* A static program put into `directory`: could it be written there, and could it be executed. */
static void planted(const char *directory) {
    char path[5000];
    snprintf(path, sizeof path, "%s/planted-%d", directory, getpid());
    int written = copy_to(path);
    open_object(directory);
    answer("write", written);
    if (!written) answer("exec", run(path));
    close_object();
    unlink(path);
}

static int set_attributes(int fd, const char *path, unsigned flags, unsigned long set, unsigned long clear) {
    struct mount_attr attributes = {.attr_set = set, .attr_clr = clear};
    return of(syscall(SYS_mount_setattr, fd, path, flags, &attributes, sizeof attributes));
}

static char *below(const char *name) {
    static char path[5000];
    snprintf(path, sizeof path, "%s/%s", temporary, name);
    return path;
}

/* ---- ways to undo the confinement; only where no mount of the host can be meant ---- */

static int bind_root(void *flags) {
    mkdir(below("bound"), 0700);
    return of(mount("/", below("bound"), NULL, *(unsigned long *)flags, NULL));
}

static int bind_root_and_run(void *path) {
    unsigned long flags = MS_BIND | MS_REC;
    int error = bind_root(&flags);
    if (error) return error;
    char whole[5100];
    snprintf(whole, sizeof whole, "%s%s", below("bound"), (char *)path);
    return become(whole);
}

static int bind_root_and_clear(void *flags) {
    unsigned long bind = MS_BIND | MS_REC;
    int error = bind_root(&bind);
    if (error) return error;
    return set_attributes(AT_FDCWD, below("bound"), 0, 0, *(unsigned long *)flags);
}

static int clone_root(unsigned flags) {
    return (int)syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
}

static int clone_and_run(void *path) {
    int fd = clone_root(AT_RECURSIVE_FLAG);
    struct at at = {fd, path};
    return fd < 0 ? errno : become_at(&at);
}

static int clone_and_clear(void *flags) {
    int fd = clone_root(AT_RECURSIVE_FLAG);
    return fd < 0 ? errno : set_attributes(fd, "", AT_EMPTY_PATH, 0, *(unsigned long *)flags);
}

static int put(const char *path, const char *what) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int error = fd < 0 ? errno : of(write(fd, what, strlen(what)));
    if (fd >= 0) close(fd);
    return error;
}

/* A user and a mount namespace of our own, in which we are root as we were. */
static int own_namespaces(void) {
    char mapping[64], groups[64];
    snprintf(mapping, sizeof mapping, "0 %d 1", geteuid());
    snprintf(groups, sizeof groups, "0 %d 1", getegid());
    int error = of(unshare(CLONE_NEWUSER | CLONE_NEWNS));
    if (error) return error;
    put("/proc/self/setgroups", "deny"); /* denied already further out, or now */
    error = put("/proc/self/uid_map", mapping);
    return error ? error : put("/proc/self/gid_map", groups);
}

static int nested_clear(void *flags) {
    int error = own_namespaces();
    return error ? error : set_attributes(AT_FDCWD, "/", 0, 0, *(unsigned long *)flags);
}

static int nested_run(void *path) {
    int error = own_namespaces();
    return error ? error : become(path);
}

static int fresh_tmpfs(void *unused) {
    (void)unused;
    int error = own_namespaces();
    if (error) return error;
    mkdir(below("fresh"), 0700);
    error = of(mount("fresh", below("fresh"), "tmpfs", 0, NULL));
    if (error) return error;
    char path[5100];
    snprintf(path, sizeof path, "%s/planted", below("fresh"));
    error = copy_to(path);
    return error ? error : become(path);
}

static int overlay(void *unused) {
    (void)unused;
    int error = own_namespaces();
    if (error) return error;
    mkdir(below("over"), 0700);
    mkdir(below("empty"), 0700);
    char options[5200], path[5100];
    snprintf(options, sizeof options, "lowerdir=/usr/bin:%s", below("empty"));
    error = of(mount("overlay", below("over"), "overlay", 0, options));
    if (error) return error;
    snprintf(path, sizeof path, "%s/true", below("over"));
    return become(path);
}

static int fresh_proc(void *unused) {
    (void)unused;
    mkdir(below("proc"), 0700);
    return of(mount("proc", below("proc"), "proc", 0, NULL));
}

static int join_outside(void *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? errno : of(setns(fd, 0));
}

static int memfd_run(void *unused) {
    (void)unused;
    int fd = memfd_create("planted", MFD_CLOEXEC);
    if (fd < 0) return errno;
    int error = copy_into(fd);
    if (error) return error;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int image = open(path, O_RDONLY | O_CLOEXEC); /* one that is open for writing is ETXTBSY */
    close(fd);
    struct at at = {image, ""};
    return become_at(&at);
}

static void undo(void) {
    unsigned long noexec = MOUNT_ATTR_NOEXEC, nosuid = MOUNT_ATTR_NOSUID, readonly = MOUNT_ATTR_RDONLY;
    unsigned long plain = MS_BIND;
    char path[64];
    open_object("undo");
    char space[64] = "";
    if (readlink("/proc/self/ns/user", space, sizeof space - 1) < 0 || !strcmp(space, "user:[4026531837]")) {
        string("skipped", "this is the host's user namespace");
        close_object();
        return;
    }
    answer("clear noexec of /", set_attributes(AT_FDCWD, "/", 0, 0, noexec));
    answer("clear nosuid of /", set_attributes(AT_FDCWD, "/", 0, 0, nosuid));
    answer("clear rdonly of /", set_attributes(AT_FDCWD, "/", 0, 0, readonly));
    answer("clear noexec of all", set_attributes(AT_FDCWD, "/", AT_RECURSIVE_FLAG, 0, noexec));
    answer("clear noexec of /proc", set_attributes(AT_FDCWD, "/proc", 0, 0, noexec));
    answer("clear noexec of /dev", set_attributes(AT_FDCWD, "/dev", 0, 0, noexec));
    answer("clear noexec of the place", set_attributes(AT_FDCWD, container, 0, 0, noexec));
    answer("remount /", of(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL)));
    answer("remount / rw", of(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NOEXEC, NULL)));
    answer("remount the super block", of(mount(NULL, "/", NULL, MS_REMOUNT, NULL)));
    answer("umount /proc", of(umount2("/proc", 0)));
    answer("umount /proc lazily", of(umount2("/proc", MNT_DETACH)));
    answer("umount the place", of(umount2(container, MNT_DETACH)));
    answer("umount /", of(umount2("/", MNT_DETACH)));
    answer("bind /", apart(bind_root, &plain));
    answer("bind / recursively, run", apart(bind_root_and_run, "/bin/true"));
    answer("bind / recursively, clear", apart(bind_root_and_clear, &noexec));
    answer("clone /", of(clone_root(0)));
    answer("clone / recursively, run", apart(clone_and_run, "bin/true"));
    answer("clone / recursively, clear", apart(clone_and_clear, &noexec));
    answer("nested namespace, clear", apart(nested_clear, &noexec));
    answer("nested namespace, run", apart(nested_run, "/bin/true"));
    answer("fresh proc", apart(fresh_proc, NULL));
    answer("overlay of /usr/bin, run", apart(overlay, NULL));
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%s/ns/%s", outside, i ? "user" : "mnt");
        answer(i ? "join user namespace outside" : "join mount namespace outside", apart(join_outside, path));
    }
    close_object();
}

/* ---- the checks ---- */

static void programs(void) {
    static const char *const paths[] = {"/bin/true", "/usr/bin/true", "/usr/bin/su", "/bin/sh", "/usr/bin/python3"};
    open_object("exec");
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) answer(paths[i], run(paths[i]));
    answer("loader", apart(load, "/bin/true"));
    answer("mmap", map("/bin/true", 0));
    answer("mprotect", map("/bin/true", 1));
    char path[5000];
    snprintf(path, sizeof path, "%s/host-program", base); /* the test put it there, if it did */
    answer("own program", run(path));
    close_object();
}

static void around(void) {
    char path[128], *names[] = {"root/bin/true", "cwd", "exe", "fd/0", "root"};
    char parent[32];
    snprintf(parent, sizeof parent, "%d", getppid());
    char *pids[] = {outside, parent};
    char *labels[] = {"outside", "parent"};
    for (int p = 0; p < 2; p++) {
        open_object(labels[p]);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            snprintf(path, sizeof path, "/proc/%s/%s", pids[p], names[i]);
            if (i == 0 || i == 2) answer(names[i], run(path));
            else answer(names[i], of(open(path, O_PATH | O_CLOEXEC)));
        }
        snprintf(path, sizeof path, "/proc/%s/mem", pids[p]);
        answer("mem", of(open(path, O_RDWR | O_CLOEXEC)));
        close_object();
    }
}

/* Whoever is root is root to every file of root's, and may signal every process of root's, whatever it cannot do. */
static void reaching(void) {
    char path[5000];
    open_object("reach");
    answer("/etc/shadow", of(open("/etc/shadow", O_RDONLY | O_CLOEXEC)));
    answer("/etc/passwd", of(open("/etc/passwd", O_RDONLY | O_CLOEXEC)));
    snprintf(path, sizeof path, "%s/secret", base); /* the test put it there: root's, 0600 */
    answer("secret", of(open(path, O_RDONLY | O_CLOEXEC)));
    answer("/..", of(open("/../etc/passwd", O_RDONLY | O_CLOEXEC)));
    answer("signal outside", of(kill(atoi(outside), 0)));
    answer("signal the parent", of(kill(getppid(), 0)));
    answer("signal init", of(kill(1, 0)));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int size = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "nucleus-gvisor-test-%s", outside);
    int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    answer("abstract socket", of(connect(link, (void *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + size)));
    close(link);
    int segment = shmget(atoi(outside), 0, 0); /* one that is the test's */
    answer("shared memory", of(segment));
    close_object();
    const char *const names[] = {"root", "cwd", "fd", "map_files"};
    long reached = 0, seen = 0;
    DIR *list = opendir("/proc");
    struct dirent *entry;
    while (list && (entry = readdir(list))) {
        int pid = atoi(entry->d_name);
        if (!pid || pid == getpid()) continue;
        seen++;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            snprintf(path, sizeof path, "/proc/%d/%s/.", pid, names[i]);
            DIR *inside = opendir(path);
            /* The names of descriptors may be read; what they are may not. */
            for (struct dirent *found; inside && (found = readdir(inside));)
                reached += found->d_name[0] != '.' && openat(dirfd(inside), found->d_name, O_PATH | O_CLOEXEC) >= 0;
            if (inside) closedir(inside);
        }
    }
    if (list) closedir(list);
    number("processes", seen);
    number("reached", reached);
    key("root directory");
    putchar('[');
    list = opendir("/");
    for (int first = 1; list && (entry = readdir(list));) {
        if (entry->d_name[0] == '.') continue;
        if (!first) putchar(',');
        text(entry->d_name);
        first = 0;
    }
    if (list) closedir(list);
    putchar(']');
}

/* A sandbox has a process beside it that ends it with its owner. */
static void attended(void) {
    char path[5000], name[64] = "";
    for (int tries = 0; tries < 10000; tries++, usleep(1000)) {
        DIR *list = opendir("/proc");
        for (struct dirent *entry; list && (entry = readdir(list));) {
            snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
            int fd = atoi(entry->d_name) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
            ssize_t size = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
            if (fd >= 0) close(fd);
            if (size != 14 || strncmp(name, "ngv-attendant", 13)) continue;
            snprintf(path, sizeof path, "/proc/%s/mem", entry->d_name);
            open_object("attendant");
            answer("signal", of(kill(atoi(entry->d_name), 0)));
            answer("trace", of(ptrace(PTRACE_SEIZE, atoi(entry->d_name), 0, 0)));
            answer("mem", of(open(path, O_RDWR | O_CLOEXEC)));
            close_object();
            closedir(list);
            return;
        }
        if (list) closedir(list);
    }
}

static void writing(void) {
    char path[5000], other[5000];
    snprintf(path, sizeof path, "%s/host-file", base);
    snprintf(other, sizeof other, "%s/other-file", base);
    open_object("write");
    answer("open", of(open(path, O_WRONLY | O_CLOEXEC)));
    answer("append", of(open(path, O_WRONLY | O_APPEND | O_CLOEXEC)));
    answer("truncate", of(truncate(path, 3)));
    answer("chmod", of(chmod(path, 0777)));
    answer("unlink", of(unlink(path)));
    answer("rename", of(rename(path, other)));
    answer("link", of(link(path, other)));
    answer("create", of(open(other, O_WRONLY | O_CREAT | O_CLOEXEC, 0600)));
    answer("mkdir", of(mkdir(other, 0700)));
    answer("/etc/hostname", of(open("/etc/hostname", O_WRONLY | O_CLOEXEC)));
    answer("/dev/shm", of(open("/dev/shm", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600)));
    /* Opened only: a write to any of these would act on the whole host. */
    answer("/proc/sys/kernel/core_pattern", of(open("/proc/sys/kernel/core_pattern", O_WRONLY | O_CLOEXEC)));
    answer("/proc/sysrq-trigger", of(open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC)));
    close_object();
}

/* The device that holds the artifact base, and the kernel's memory: through either, all of the host can be written. */
static void devices(void) {
    open_object("devices");
    DIR *list = opendir("/dev");
    struct dirent *entry;
    while (list && (entry = readdir(list))) {
        struct stat status;
        char path[512];
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        if (lstat(path, &status) || !S_ISBLK(status.st_mode)) continue;
        answer(path, of(open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC)));
    }
    if (list) closedir(list);
    answer("/dev/mem", of(open("/dev/mem", O_RDWR | O_CLOEXEC)));
    close_object();
}

static void descriptors(void) {
    key("descriptors");
    putchar('[');
    DIR *list = opendir("/proc/self/fd");
    struct dirent *entry;
    const char *between = "";
    while (list && (entry = readdir(list))) {
        int fd = atoi(entry->d_name);
        if (*entry->d_name == '.' || fd == dirfd(list)) continue;
        printf("%s%d", between, fd);
        between = ", ";
    }
    if (list) closedir(list);
    printf("]");
    key("leaked");
    putchar('[');
    between = "";
    for (int fd = 3; fd < OPENED_ELSEWHERE; fd++) {
        /* Not in a child: that one has descriptors of its own. Had it worked, there would be no report. */
        struct at at = {fd, "bin/true"}, itself = {fd, ""};
        if (become_at(&at) != EBADF || become_at(&itself) != EBADF) {
            printf("%s%d", between, fd);
            between = ", ";
        }
    }
    putchar(']');
}

static void signals(void) {
    int ignored = 0, handled = 0, blocked = 0;
    sigset_t mask;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    for (int n = 1; n <= SIGRTMAX; n++) {
        struct sigaction action;
        blocked += sigismember(&mask, n) == 1;
        if (sigaction(n, NULL, &action)) continue;
        ignored += action.sa_handler == SIG_IGN;
        handled += action.sa_handler != SIG_IGN && action.sa_handler != SIG_DFL;
    }
    open_object("signals");
    number("ignored", ignored);
    number("handled", handled);
    number("blocked", blocked);
    close_object();
}

static void surroundings(char **argv) {
    char path[4096];
    key("argv");
    putchar('[');
    for (int i = 0; argv[i]; i++) {
        if (i) printf(", ");
        text(argv[i]);
    }
    putchar(']');
    open_object("env");
    for (char **entry = environ; *entry; entry++) {
        char *value = strchr(*entry, '=');
        *value = 0;
        string(*entry, value + 1);
        *value = '=';
    }
    close_object();
    string("cwd", getcwd(path, sizeof path) ? path : "?");
    number("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    mode_t mask = umask(0);
    umask(mask);
    number("umask", mask);
    ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    string("exe", path);
    answer("itself", run("/proc/self/exe"));
}

/* What lies beside this program: the set of a staged runsc and its side binaries. */
static void beside(void) {
    char self[4096], path[5000];
    ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    self[size < 0 ? 0 : size] = 0;
    char *slash = strrchr(self, '/');
    if (!slash || self[0] != '/' || !strncmp(self, "/memfd:", 7)) return;
    *slash = 0;
    struct statfs status;
    if (statfs(self, &status)) return;
    open_object("beside");
    number("type", (long)status.f_type);
    number("readonly", (status.f_flags & 1 /* ST_RDONLY */) != 0);
    snprintf(path, sizeof path, "%s/gvisor-bin/helper", self);
    answer("helper", run(path));
    answer("write helper", of(open(path, O_WRONLY | O_CLOEXEC)));
    answer("chmod helper", of(chmod(path, 0777)));
    answer("remove helper", of(unlink(path)));
    snprintf(path, sizeof path, "%s/gvisor-bin/another", self);
    answer("add helper", of(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0700)));
    snprintf(path, sizeof path, "%s/runsc", self);
    answer("write runsc", of(open(path, O_WRONLY | O_CLOEXEC)));
    answer("clear rdonly", set_attributes(AT_FDCWD, self, 0, 0, MOUNT_ATTR_RDONLY));
    close_object();
}

static void parent_of(char *into, const char *path) {
    strcpy(into, path);
    char *slash = strrchr(into, '/');
    if (slash) *slash = 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "noop")) return 0;
    if (argc == 4 && !strcmp(argv[1], "say")) {
        puts(argv[2]);
        return atoi(argv[3]);
    }
    if (argc == 2 && !strcmp(argv[1], "--version")) {
        puts("runsc version 0.0~20240729.0\nspec: 1.1.0-rc.1");
        return 0;
    }
    if (argc == 2 && !strcmp(argv[1], "flags")) {
        puts("  -platform string\n    \tspecifies which platform to use: kvm, ptrace, systrap. (default \"systrap\")");
        return 0;
    }
    for (int i = 1; i < argc - 1; i++) {
        if (!strcmp(argv[i], "--root")) snprintf(runsc_root, sizeof runsc_root, "%s", argv[i + 1]);
        if (!strcmp(argv[i], "--bundle")) snprintf(bundle, sizeof bundle, "%s", argv[i + 1]);
    }
    const char *dash = strrchr(argv[argc - 1], '-');
    if (!*bundle || !dash) return 2;
    snprintf(outside, sizeof outside, "%s", dash + 1);
    parent_of(container, bundle);
    parent_of(base, container);
    snprintf(temporary, sizeof temporary, "%s", getenv("TMPDIR") ? getenv("TMPDIR") : "/nonexistent");

    putchar('{');
    surroundings(argv);
    descriptors();
    signals();
    programs();
    around();
    reaching();
    if (!strncmp(argv[argc - 1], "attended", 8)) attended();
    open_object("planted");
    const char *places[] = {temporary, runsc_root, bundle, container, base, "/tmp", "/var/tmp", "/dev/shm", "/root", "/run", "/dev"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) planted(places[i]);
    close_object();
    writing();
    devices();
    beside();
    undo();
    open_object("by nature");
    answer("memfd", apart(memfd_run, NULL));
    answer("tmpfs", apart(fresh_tmpfs, NULL));
    close_object();
    puts("\n}");
    return 0;
}
