/* SPDX-License-Identifier: Apache-2.0 */
/* Starting QEMU for a test: RAM in a shared file, QMP, serial port in a log. */
#ifndef TEST_VM_H
#define TEST_VM_H

#include <stdbool.h>
#include <sys/types.h>

#define VM_PATH 128

struct vm {
	pid_t pid;		/* 0: not running */
	int qmp;
	char ram[VM_PATH];	/* the RAM file */
	char log[VM_PATH];	/* what the serial port wrote */
	char serial[VM_PATH];	/* a socket: the serial port's other side */
	char err[VM_PATH];	/* QEMU's messages */
};

struct vm_config {
	const char *dir;	/* for its files */
	const char *name;	/* of its files, unique in dir */
	unsigned int mib;	/* of RAM */
	const char *machine;	/* -M, without memory-backend */
	const char *cpu;	/* -cpu or NULL */
	const char *const *more; /* further arguments, NULL-ended, or NULL */
};

/*
 * Starts QEMU and opens QMP.  0, or -1 with the reason and QEMU's own words
 * on stderr.  The QEMU process dies with the calling thread.
 */
int vm_start(struct vm *vm, const struct vm_config *config);

/* Kills it by its id, waits for it and removes its files. */
void vm_end(struct vm *vm);

/* Whether the process is still there. */
bool vm_alive(struct vm *vm);

/* A QMP command without arguments.  0, or -1 with a message. */
int vm_qmp(struct vm *vm, const char *command);

/* A whole QMP request as JSON.  0, or -1 with a message. */
int vm_qmp_json(struct vm *vm, const char *request);

/* Waits until the serial log holds the text.  0, or -1 after the time. */
int vm_wait_log(struct vm *vm, const char *text, unsigned int milliseconds);

/* The serial log as text, to be freed by the caller; never NULL. */
char *vm_read_log(const struct vm *vm);

/* Opens the socket of the serial port; the descriptor, or -1. */
int vm_open_serial(const struct vm *vm);

/* The QEMU program: $QEMU or the one in $PATH.  NULL: none is installed. */
const char *vm_program(void);

#endif
