/* File operations that can be counted, killed at, or failed: a library to preload (LD_PRELOAD), see operations.py.
 *
 * An operation is a call that changes a file below one folder. Numbering starts at 1 when `arm` is called. Reads are
 * not counted. Paths of descriptors come from /proc, so this is for Linux.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FAIL };

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static int mode = OFF, failure = 0, log_file = -1;
static pid_t armed_process = 0;
static long target = 0, seen = 0;

/* Begin to number operations below `folder`; act at number `at` as `what` says, with errno `code` for FAIL. */
void arm(const char *folder, int what, long at, int code, const char *log_path) {
    snprintf(root, sizeof root, "%s", folder);
    mode = what, target = at, failure = code, seen = 0, armed_process = getpid();
    log_file = log_path ? (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND, 0666) : -1;
}

static int inside(const char *path) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int link_target(const char *link, char *path) {
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int of_descriptor(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    return link_target(link, path) && inside(path);
}

static int of_name(int folder, const char *name, char *path) {
    char base[PATH_MAX], link[64];
    if (!name) return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return inside(path);
    }
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    if (!link_target(link, base) || strlen(base) + strlen(name) + 2 > PATH_MAX) return 0;
    strcpy(path, base), strcat(path, "/"), strcat(path, name);
    return inside(path);
}

/* Whether the call must fail; it does not return where the process is to be killed. */
static int acted(const char *operation, const char *path) {
    int fails = 0;
    pthread_mutex_lock(&guard);
    if (getpid() == armed_process) { /* not in processes it starts, such as git */
        seen++;
        if (log_file >= 0) {
            char line[PATH_MAX + 64];
            int length = snprintf(line, sizeof line, "%ld\t%s\t%s\n", seen, operation, path);
            syscall(SYS_write, log_file, line, length);
        }
        if (seen == target && mode == KILL) kill(getpid(), SIGKILL);
        fails = seen == target && mode == FAIL;
    }
    pthread_mutex_unlock(&guard);
    if (fails) errno = failure;
    return fails;
}

#define NEXT(name) __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_FILE(operation, file) (mode != OFF && (file) > 2 && of_descriptor(file, path) && acted(operation, path))
#define ON_NAME(operation, folder, name) (mode != OFF && of_name(folder, name, path) && acted(operation, path))
#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                                                                                     \
    int name(const char *file, int flags, ...) {                                                                       \
        char path[PATH_MAX];                                                                                           \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t bits = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                                      \
        va_end(rest);                                                                                                  \
        NEXT(name);                                                                                                    \
        return CHANGES(flags) && ON_NAME("open", AT_FDCWD, file) ? -1 : next(file, flags, bits);                       \
    }
#define OPEN_AT(name)                                                                                                  \
    int name(int folder, const char *file, int flags, ...) {                                                           \
        char path[PATH_MAX];                                                                                           \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t bits = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                                      \
        va_end(rest);                                                                                                  \
        NEXT(name);                                                                                                    \
        return CHANGES(flags) && ON_NAME("open", folder, file) ? -1 : next(folder, file, flags, bits);                 \
    }
#define CALL(result, name, parameters, condition, arguments)                                                           \
    result name parameters {                                                                                           \
        char path[PATH_MAX];                                                                                           \
        NEXT(name);                                                                                                    \
        return (condition) ? -1 : next arguments;                                                                      \
    }

OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)
CALL(ssize_t, write, (int f, const void *b, size_t n), ON_FILE("write", f), (f, b, n))
CALL(ssize_t, writev, (int f, const struct iovec *b, int n), ON_FILE("write", f), (f, b, n))
CALL(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), ON_FILE("write", f), (f, b, n, o))
CALL(ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), ON_FILE("write", f), (f, b, n, o))
CALL(int, ftruncate, (int f, off_t n), ON_FILE("truncate", f), (f, n))
CALL(int, ftruncate64, (int f, off64_t n), ON_FILE("truncate", f), (f, n))
CALL(int, fsync, (int f), ON_FILE("fsync", f), (f))
CALL(int, fdatasync, (int f), ON_FILE("fsync", f), (f))
CALL(int, rename, (const char *a, const char *b), ON_NAME("rename", AT_FDCWD, b), (a, b))
CALL(int, renameat, (int d, const char *a, int e, const char *b), ON_NAME("rename", e, b), (d, a, e, b))
CALL(int, link, (const char *a, const char *b), ON_NAME("link", AT_FDCWD, b), (a, b))
CALL(int, unlink, (const char *a), ON_NAME("unlink", AT_FDCWD, a), (a))
CALL(int, unlinkat, (int d, const char *a, int f), ON_NAME("unlink", d, a), (d, a, f))
CALL(int, rmdir, (const char *a), ON_NAME("rmdir", AT_FDCWD, a), (a))
CALL(int, mkdir, (const char *a, mode_t m), ON_NAME("mkdir", AT_FDCWD, a), (a, m))
CALL(int, mkdirat, (int d, const char *a, mode_t m), ON_NAME("mkdir", d, a), (d, a, m))

/* This one returns the error number. */
int posix_fallocate(int f, off_t o, off_t n) {
    char path[PATH_MAX];
    NEXT(posix_fallocate);
    return ON_FILE("allocate", f) ? failure : next(f, o, n);
}
int posix_fallocate64(int f, off64_t o, off64_t n) {
    char path[PATH_MAX];
    NEXT(posix_fallocate64);
    return ON_FILE("allocate", f) ? failure : next(f, o, n);
}
