/* Stands in for runsc, and, in a guest's root, for the guest.
 *
 *   standin --version | flags     answers as runsc does, unless somebody listens at port MOOD of the loopback: whatever
 *                                 else is taken from it, it has its caller's network
 *   standin ... run ...           waits for a byte on its standard input, then gives a proof of life: one JSON line with
 *                                 what it is executed from, its environment, and what it may do from where it is
 *   standin guest                 the same without the looking around
 *
 * After its proof it stays until its standard input ends, so that others can look at it. Bytes appended to the file
 * change nothing but its digest.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* What `work` answers in a process of its own: 0, or an errno. */
static int apart(int (*work)(const char *), const char *argument)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(work(argument));
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static int execute(const char *program)
{
    char *argv[] = {(char *)program, NULL};
    execve(program, argv, argv + 1);
    return errno;
}

/* runsc must mount: without a mount namespace of its own, or on what it may not mount, it hangs. */
static int mount_on(const char *directory)
{
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return errno;
    return mount("none", directory, "tmpfs", 0, NULL) ? errno : 0;
}

/* Take noexec from / again; only where it is set, and never where the host would see it. */
static int undo(const char *root)
{
    struct statvfs now;
    if (statvfs(root, &now) || !(now.f_flag & ST_NOEXEC))
        return 0;
    if (unshare(CLONE_NEWNS))
        return errno;
    return mount(NULL, root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) ? errno : 0;
}

static int spoilt(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(MOOD)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return !connect(fd, (struct sockaddr *)&address, sizeof address);
}

static const char *after(char **argv, const char *flag)
{
    for (; *argv; argv++)
        if (!strcmp(*argv, flag) && argv[1])
            return argv[1];
    return "/";
}

static void prove(char **argv)
{
    struct stat self;
    stat("/proc/self/exe", &self);
    printf("{\"device\": %lu, \"inode\": %lu, \"no_new_privs\": %d, ", self.st_dev, self.st_ino,
           prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    printf("\"host_exec\": %d, \"undo\": %d, ", apart(execute, "/bin/true"), apart(undo, "/"));
    printf("\"mount\": %d, \"env\": [", apart(mount_on, after(argv, "--root")));
    for (char **entry = environ; *entry; entry++)
        printf("%s\"%.*s\"", entry == environ ? "" : ", ", (int)strcspn(*entry, "="), *entry);
    printf("]}\n");
}

int main(int argc, char **argv)
{
    const char *last = argc > 1 ? argv[argc - 1] : "";
    int running = 0;
    char byte;
    for (int i = 1; i < argc; i++)
        running |= !strcmp(argv[i], "run") || !strcmp(argv[i], "guest");
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    if (running) {
        if (read(0, &byte, 1) != 1)
            return 0;
        if (strcmp(last, "guest"))
            prove(argv);
        else
            printf("{\"guest\": true}\n");
        fflush(stdout);
        while (read(0, &byte, 1) > 0)
            ;
        return 0;
    }
    if (spoilt()) {
        printf("BusyBox v1.36.1 multi-call binary.\n");
        return 0;
    }
    if (!strcmp(last, "--version"))
        printf("runsc version 0.0~20240729.0\nspec: 1.1.0-rc.1\n");
    if (!strcmp(last, "flags"))
        printf("Available flags:\n\n  -platform string\n"
               "    \tspecifies which platform to use: systrap (default), ptrace, kvm. (default \"systrap\")\n");
    return 0;
}
