/* The limit of this machine: N processes, a socket pair to each, one message and one answer.
 *
 *   limit cold|warm N [COMMAND]
 *
 * Prints "ready", then for each line on standard input runs one round and prints its microseconds,
 * from the first fork (cold) or the first message (warm) to the last answer. With COMMAND, each
 * process runs it (posix_spawn, which forks without copying) before it answers. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static char *command; /* NULL: answer at once */
static int watched;   /* epoll descriptor */

static void check(int fine, const char *what) {
  if (fine) return;
  perror(what);
  exit(1);
}

static double now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static int run_command(void) {
  char *argv[] = {command, NULL};
  pid_t child;
  int status;
  if (posix_spawn(&child, command, NULL, NULL, argv, environ)) return 0;
  return waitpid(child, &status, 0) == child && status == 0;
}

/* A worker's whole life: answer each message, until its socket is closed. */
static void work(int hub) {
  char task[64];
  while (read(hub, task, sizeof task) > 0) {
    if (command && !run_command()) _exit(1);
    if (write(hub, "acknowledged", 12) != 12) _exit(1);
  }
  _exit(0);
}

static int start_worker(void) {
  int pair[2];
  check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
  pid_t child = fork();
  check(child >= 0, "fork");
  if (child == 0) {
    close(pair[0]);
    work(pair[1]);
  }
  close(pair[1]);
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = pair[0]};
  check(epoll_ctl(watched, EPOLL_CTL_ADD, pair[0], &wanted) == 0, "epoll_ctl");
  return pair[0];
}

static void send_task(int worker) { check(write(worker, "task", 4) == 4, "write"); }

static void take_answers(int count) {
  for (int answered = 0; answered < count;) {
    struct epoll_event events[64];
    int ready = epoll_wait(watched, events, 64, -1);
    check(ready > 0, "epoll_wait");
    for (int i = 0; i < ready; i++, answered++) {
      char answer[64];
      check(read(events[i].data.fd, answer, sizeof answer) > 0, "a worker died");
    }
  }
}

static void end_workers(int *workers, int count) {
  for (int i = 0; i < count; i++) shutdown(workers[i], SHUT_RDWR); /* children hold copies */
  for (int i = 0; i < count; i++) close(workers[i]);
  while (wait(NULL) > 0) {
  }
}

int main(int argc, char **argv) {
  if (argc < 3 || argc > 4) {
    fprintf(stderr, "usage: limit cold|warm N [COMMAND]\n");
    return 2;
  }
  int warm = strcmp(argv[1], "warm") == 0;
  int count = atoi(argv[2]);
  command = argc > 3 ? argv[3] : NULL;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  watched = epoll_create1(EPOLL_CLOEXEC);
  int *workers = calloc(count, sizeof *workers);
  for (int i = 0; warm && i < count; i++) workers[i] = start_worker();
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("ready\n");
  char line[8];
  while (read(0, line, sizeof line) > 0) {
    double began = now_us();
    for (int i = 0; i < count; i++) {
      if (!warm) workers[i] = start_worker();
      send_task(workers[i]);
    }
    take_answers(count);
    double took = now_us() - began;
    if (!warm) end_workers(workers, count); /* before the next is measured */
    printf("%.0f\n", took);
  }
  if (warm) end_workers(workers, count);
  return 0;
}
