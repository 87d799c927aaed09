/* SPDX-License-Identifier: Apache-2.0 */
/* Real QEMUs for the tests of this folder.  They die with the test. */
#ifndef QEMU_RIG_H
#define QEMU_RIG_H

#include <stdbool.h>
#include <sys/types.h>

#define RIG_MEM "64M"

struct rig_qemu {
	pid_t pid;
	char dir[64];   /* temporary, with the sockets */
	char qmp[96];
	char ram[96];   /* path of the RAM file */
};

/* Whether there is a QEMU to test with; prints why not. LM_TEST_QEMU names another binary. */
bool rig_available(void);
/*
 * Start a QEMU with the arguments up to NULL after the usual ones (no display, no
 * default devices, a QMP socket).  "@RAM" in an argument becomes the path of its
 * RAM file.  Returns when its QMP socket is there; false when QEMU ended at once.
 */
bool rig_try(struct rig_qemu *q, ...) __attribute__((sentinel));
#define rig_start(q, ...)                                                                       \
	do {                                                                                    \
		if (!rig_try(q, __VA_ARGS__))                                                   \
			fail_msg("QEMU did not start (LM_TEST_VERBOSE=1 shows why)");           \
	} while (0)
/* A guest as it should be: q35 by emulation with a shared RAM file, then the arguments. */
#define RIG_GOOD "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-object", RIG_RAM
#define rig_start_good(q, ...) rig_start(q, RIG_GOOD, ##__VA_ARGS__, NULL)
#define RIG_RAM "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=@RAM,share=on"
/* Takes one that was not started or has ended. */
void rig_end(struct rig_qemu *q);

#endif
