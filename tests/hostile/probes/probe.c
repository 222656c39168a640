/* Stands in runsc's place, and tells the test what it sees from there.
 *
 * Every execution, whatever its arguments, connects to a port of the loopback (the network namespace is the test's own)
 * and sends one JSON object: so a test knows not only what a launch executed, but also that nothing was executed.
 * `brand` is patched in copies of the program, to tell them apart and to make some of them misbehave.
 *
 * WITNESS is the port.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a launch looks for among the flags of a runsc, as 20240729 lists it; one of the brand "short" lacks the rest. */
#define FEW_FLAGS "  -platform string\n    \tspecifies which platform to use: systrap, ptrace, kvm. (default \"systrap\")\n"
#define MORE_FLAGS                                                                                                     \
    "  -debug\n    \tenable debug logging.\n"                                                                          \
    "  -debug-log string\n    \tadditional location for logs.\n"                                                       \
    "  -log string\n    \tfile path where internal debug information is written, default is stdout.\n"                 \
    "  -log-format string\n    \tlog format: text (default), json, or json-k8s. (default \"text\")\n"                  \
    "  -oci-seccomp\n    \tEnables loading OCI seccomp filters inside the sandbox.\n"                                  \
    "  -overlay2 value\n    \twrap mounts with overlayfs: {mount}:{medium}, medium memory, self or dir=/abs/dir/path.\n" \
    "  -panic-log string\n    \tfile path where panic reports and other Go's runtime messages are written.\n"

static volatile const char brand[] = "brand:genuine.........";

extern char **environ;
static char text[1 << 20];
static size_t length;

static int is(const char *name) { return !strncmp((const char *)brand + 6, name, strlen(name)); }

/* ---- JSON ---- */

static void put(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    length += vsnprintf(text + length, sizeof text - length, format, arguments);
    va_end(arguments);
}

static void put_string(const char *value, size_t size)
{
    put("\"");
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = value[i];
        if (byte < 0x20 || byte > 0x7e || byte == '"' || byte == '\\')
            put("\\u00%02x", byte);
        else
            put("%c", byte);
    }
    put("\"");
}

static void put_field(const char *name, const char *value)
{
    put(",\"%s\":", name);
    put_string(value, strlen(value));
}

static void put_list(const char *name, char **items)
{
    put(",\"%s\":[", name);
    for (int i = 0; items[i]; i++) {
        put(i ? "," : "");
        put_string(items[i], strlen(items[i]));
    }
    put("]");
}

/* ---- what is seen ---- */

static void put_file(const char *name, const char *path)
{
    static char content[1 << 18];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t size = 0, part;
    while ((part = read(fd, content + size, sizeof content - size)) > 0)
        size += part;
    close(fd);
    put(",\"%s\":", name);
    put_string(content, size);
}

static void put_links(void)
{
    DIR *listing = opendir("/proc/self/fd");
    put(",\"descriptors\":{");
    int first = 1;
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        char target[PATH_MAX];
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(listing))
            continue;
        ssize_t size = readlinkat(dirfd(listing), entry->d_name, target, sizeof target);
        put("%s\"%s\":", first ? "" : ",", entry->d_name);
        put_string(target, size < 0 ? 0 : size);
        first = 0;
    }
    put("}");
    if (listing)
        closedir(listing);
}

static void put_directory(const char *name, const char *path)
{
    DIR *listing = opendir(path);
    put(",\"%s\":[", name);
    int first = 1;
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        put(first ? "" : ",");
        put_string(entry->d_name, strlen(entry->d_name));
        first = 0;
    }
    put("]");
    if (listing)
        closedir(listing);
}

static void put_image(char *folder)
{
    char path[PATH_MAX] = "";
    struct stat status = {0};
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (readlink("/proc/self/exe", path, sizeof path - 1) < 0)
        path[0] = 0;
    put_field("exe", path);
    fstat(fd, &status);
    put(",\"exe_mode\":%u,\"exe_size\":%lld,\"exe_seals\":%d", status.st_mode & 07777, (long long)status.st_size,
        fcntl(fd, F_GET_SEALS));
    close(fd);
    /* Opened for writing it must not be: ETXTBSY, EROFS, EPERM or EACCES. */
    fd = open("/proc/self/exe", O_WRONLY | O_CLOEXEC);
    put(",\"exe_writable\":%s", fd >= 0 ? "true" : "false");
    if (fd >= 0)
        close(fd);
    snprintf(folder, PATH_MAX, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
}

static const char *after(char **argv, const char *flag)
{
    for (int i = 1; argv[i] && argv[i + 1]; i++)
        if (!strcmp(argv[i], flag))
            return argv[i + 1];
    return NULL;
}

/* ---- ways out ---- */

static const char *outcome(int status)
{
    static char shown[64];
    if (WIFEXITED(status) && WEXITSTATUS(status) < 100)
        return "ran";
    if (WIFEXITED(status))
        snprintf(shown, sizeof shown, "%s", strerrorname_np(WEXITSTATUS(status) - 100) ?: "unknown");
    else
        snprintf(shown, sizeof shown, "signal %d", WTERMSIG(status));
    return shown;
}

/* Executes in a child of its own; the program's own exit status says that it ran, 100 + errno that it did not. */
static const char *try_exec(int fd, const char *path, char **argv)
{
    pid_t pid = fork();
    if (!pid) {
        char *none[] = {NULL};
        if (fd >= 0)
            fexecve(fd, argv, none);
        else
            execve(path, argv, none);
        _exit(100 + errno);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return outcome(status);
}

static void put_attempt(int *first, const char *way, const char *what, const char *answer)
{
    char key[PATH_MAX + 64];
    snprintf(key, sizeof key, "%s %s", way, what);
    put(*first ? "" : ",");
    put_string(key, strlen(key));
    put(":");
    put_string(answer, strlen(answer));
    *first = 0;
}

static const char *copy_and_exec(const char *folder)
{
    char path[PATH_MAX];
    static char bytes[1 << 21];
    snprintf(path, sizeof path, "%s/escape-%d", folder, getpid());
    int source = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int copy = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    if (copy < 0) {
        const char *name = strerrorname_np(errno);
        close(source);
        return name;
    }
    ssize_t size = 0, part;
    while ((part = read(source, bytes + size, sizeof bytes - size)) > 0)
        size += part;
    if (write(copy, bytes, size) != size)
        size = 0;
    close(source);
    close(copy);
    char *argv[] = {"escaped", NULL};
    const char *answer = try_exec(-1, path, argv);
    unlink(path);
    return answer;
}

static const char *memfd_and_exec(void)
{
    int memory = memfd_create("escape", MFD_CLOEXEC);
    int source = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    char bytes[1 << 16];
    for (ssize_t part; (part = read(source, bytes, sizeof bytes)) > 0;)
        if (write(memory, bytes, part) != part)
            return "write";
    close(source);
    char *argv[] = {"escaped-by-memfd", NULL};
    const char *answer = try_exec(memory, NULL, argv);
    close(memory);
    return answer;
}

static void attempts(char **argv)
{
    static const char *programs[] = {"/bin/true", "/usr/bin/su", "/bin/sh", "/usr/bin/env", NULL};
    static const char *folders[] = {"/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/etc", "/dev/mqueue", NULL};
    char path[PATH_MAX];
    int first = 1;
    put(",\"attempts\":{");
    for (int i = 0; programs[i]; i++) {
        char *call[] = {(char *)programs[i], "-c", ":", NULL};
        put_attempt(&first, "exec", programs[i], try_exec(-1, programs[i], call));
    }
    char *loader[] = {"/lib64/ld-linux-x86-64.so.2", "/bin/true", NULL};
    put_attempt(&first, "exec", loader[0], try_exec(-1, loader[0], loader));
    long outside[] = {1, getppid()};
    for (int i = 0; i < 2; i++) {
        char *call[] = {path, NULL};
        snprintf(path, sizeof path, "/proc/%ld/root/bin/true", outside[i]);
        put_attempt(&first, "exec", i ? "the parent's root" : "init's root", try_exec(-1, path, call));
    }
    int program = open("/bin/true", O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, program, 0);
    put_attempt(&first, "map", "/bin/true", mapped == MAP_FAILED ? strerrorname_np(errno) : "ran");
    close(program);
    for (int i = 0; folders[i]; i++)
        put_attempt(&first, "copy to", folders[i], copy_and_exec(folders[i]));
    for (char **entry = environ; *entry; entry++)
        if (!strncmp(*entry, "TMPDIR=", 7))
            put_attempt(&first, "copy to", "TMPDIR", copy_and_exec(*entry + 7));
    if (after(argv, "--root"))
        put_attempt(&first, "copy to", "--root", copy_and_exec(after(argv, "--root")));
    if (after(argv, "--bundle"))
        put_attempt(&first, "copy to", "--bundle", copy_and_exec(after(argv, "--bundle")));
    if (readlink("/proc/self/exe", path, sizeof path - 1) > 0 && strrchr(path, '/') != path) {
        *strrchr(path, '/') = 0;
        put_attempt(&first, "copy to", "beside the image", copy_and_exec(path));
    }
    int undone = mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL);
    put_attempt(&first, "undo", "/", undone ? strerrorname_np(errno) : "ran");
    put_attempt(&first, "memfd", "", memfd_and_exec());
    put("}");
}

/* ---- */

static void tell(int argc, char **argv)
{
    char folder[PATH_MAX] = "", path[PATH_MAX + 32];
    if (argc > 1 && !strncmp(argv[argc - 1], "brief", 5))
        return;
    put("{\"pid\":%d", getpid());
    put_field("brand", (const char *)brand + 6);
    put_list("argv", argv);
    put_list("environ", environ);
    put_links();
    put_field("cwd", getcwd(path, sizeof path) ? path : "");
    put_file("status", "/proc/self/status");
    put_file("limits", "/proc/self/limits");
    put_image(folder);
    put_directory("beside", folder);
    const char *bundle = after(argv, "--bundle");
    if (bundle) {
        snprintf(path, sizeof path, "%s/config.json", bundle);
        put_file("config", path);
    }
    if (bundle && !strncmp(argv[argc - 1], "escape", 6))
        attempts(argv);
    if (bundle && !strncmp(argv[argc - 1], "helper", 6)) {
        snprintf(path, sizeof path, "%s/gvisor-bin/helper", folder);
        char *call[] = {"helper", NULL};
        put_field("helper", try_exec(-1, path, call));
    }
    put("}");

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(WITNESS)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int link = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (!connect(link, (struct sockaddr *)&address, sizeof address))
        for (size_t sent = 0; sent < length;) {
            ssize_t part = send(link, text + sent, length - sent, MSG_NOSIGNAL);
            if (part <= 0)
                break;
            sent += part;
        }
    close(link);
}

int main(int argc, char **argv)
{
    int asked = argc == 2 && (!strcmp(argv[1], "--version") || !strcmp(argv[1], "flags"));
    if (is("silent") && asked) {
        tell(argc, argv);
        for (;;)
            pause();
    }
    if (is("stubborn") && asked) {
        signal(SIGALRM, SIG_IGN);
        tell(argc, argv);
        for (;;)
            pause();
    }
    tell(argc, argv);
    if (asked && !strcmp(argv[1], "--version"))
        printf(is("other") ? "other version 1.0\n" : "runsc version 0.0~20240729.0\nspec: 1.1.0-rc.1\n");
    else if (asked)
        puts(is("short") ? FEW_FLAGS : FEW_FLAGS MORE_FLAGS);
    else if (argc > 1 && !strncmp(argv[argc - 1], "wait", 4)) {
        char byte;
        while (read(0, &byte, 1) > 0)
            ;
    } else if (argc > 1 && strncmp(argv[argc - 1], "brief", 5) && strncmp(argv[argc - 1], "trial-", 6))
        usleep(30000); /* a real runsc never ends at once; what does is a case of its own */
    return 0;
}
