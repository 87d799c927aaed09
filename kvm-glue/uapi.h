/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel interfaces that the build host's headers may be too old for, under names
 * of our own: Linux 6.7's PAGEMAP_SCAN and userfaultfd features, and others.
 */
#ifndef LM_UAPI_H
#define LM_UAPI_H

#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

/* linux/userfaultfd.h */
#define LM_UFFD_USER_MODE_ONLY 1
#define LM_UFFD_FEATURE_MINOR_HUGETLBFS    (UINT64_C(1) << 9)
#define LM_UFFD_FEATURE_MINOR_SHMEM        (UINT64_C(1) << 10)
#define LM_UFFD_FEATURE_WP_HUGETLBFS_SHMEM (UINT64_C(1) << 12)
#define LM_UFFD_FEATURE_WP_UNPOPULATED     (UINT64_C(1) << 13)
#define LM_UFFD_FEATURE_WP_ASYNC           (UINT64_C(1) << 15)
#define LM_USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)

/* asm-generic/mman-common.h: Linux 5.18, which is also the first that drops huge pages */
#define LM_MADV_DONTNEED_LOCKED 24

/* linux/fs.h */
#define LM_PAGE_IS_WRITTEN (UINT64_C(1) << 1)
#define LM_PAGE_IS_PRESENT (UINT64_C(1) << 3)
#define LM_PM_SCAN_WP_MATCHING   (1 << 0)
#define LM_PM_SCAN_CHECK_WPASYNC (1 << 1)

struct lm_page_region {
	__u64 start, end; /* addresses, [start, end) */
	__u64 categories;
};

struct lm_pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start, end;
	__u64 walk_end; /* out: where the walk stopped */
	__u64 vec, vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#define LM_PAGEMAP_SCAN _IOWR('f', 16, struct lm_pm_scan_arg)

/* linux/ptrace.h */
#define LM_PTRACE_GET_RSEQ_CONFIGURATION 0x420f
struct lm_ptrace_rseq_configuration {
	__u64 rseq_abi_pointer;
	__u32 rseq_abi_size;
	__u32 signature;
	__u32 flags;
	__u32 pad;
};

#endif
