/* SPDX-License-Identifier: Apache-2.0 */
/* A directory for a test's files that is gone however the test ends. */
#ifndef TEST_TEMPDIR_H
#define TEST_TEMPDIR_H

/*
 * Makes a directory in /dev/shm (guest RAM files must not be written to disk)
 * and puts its path in path.  0, or -1 with a message on stderr.
 *
 * A small process stays behind to remove the directory with all it holds once
 * the caller has ended, be it by a signal.  Call it before QEMU is started.
 */
int tempdir_make(char *path, unsigned int size);

/* Removes it now; the process left behind then has nothing to do. */
void tempdir_remove(const char *path);

#endif
