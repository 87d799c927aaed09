/* SPDX-License-Identifier: Apache-2.0 */
/* Between scsi_sg.c (commands) and scsi_sg_find.c (which disks there are). */
#ifndef LM_SCSI_SG_H
#define LM_SCSI_SG_H

#include "scsi_path.h"

#define LM_SG_NAME_MAX 32

/* A path over the disk of that name ("sda"), not connected.  NULL: no memory. */
struct lm_scsi_path *lm_sg_path(const char *disk);
/* "/dev/sg3" for the disk of that name, as it is now. */
int lm_sg_device(const char *disk, char *ret, size_t size, struct lm_error *err);

#endif
