/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Multiboot 1 entry and the way into 64-bit mode.
 *
 * The header gives load addresses itself (flag bit 16), because QEMU's loader
 * refuses a 64-bit ELF file when it has to read the ELF headers.
 *
 * The first GiB is mapped here with 2 MiB pages; mem.c maps the rest.  All of
 * it is open to user mode: the main loop runs in ring 3 (see enter_user), for
 * a KVM without hardware help runs user mode natively and the kernel slowly.
 */
#define MB_MAGIC	0x1badb002
#define MB_FLAGS	0x00010002	/* addresses given, memory map wanted */

#define PTE_TABLE	0x07		/* present, writable, user */
#define PTE_2M		0x87		/* the same and large */

#define CR0_ON		0x80000023	/* PG, NE, MP, PE */
#define CR0_OFF		0x6000000c	/* CD, NW, TS, EM */
#define CR4_PAE		0x20
#define MSR_EFER	0xc0000080
#define EFER_LME	0x100

#define SEL_KCODE	0x08
#define SEL_KDATA	0x10
#define SEL_UDATA	0x1b
#define SEL_UCODE	0x23
#define SEL_KCODE32	0x28
#define FLAGS_USER	0x3002		/* I/O privilege 3, interrupts off */

#define CPUS_MAX	16		/* as in guest.h */
#define AP_STACK_SHIFT	13

/* From 32-bit mode; the jump into 64-bit mode is next. */
	.macro	paging_on
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$boot_pml4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	andl	$~CR0_OFF, %eax
	orl	$CR0_ON, %eax
	movl	%eax, %cr0
	.endm

	.section .multiboot, "a"
	.balign	4
header:
	.long	MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)
	.long	header, load_start, load_end, bss_end, start

	.text
	.code32
	.globl	start
start:
	cli
	cld
	movl	$stack_top, %esp
	movl	%eax, %esi		/* the loader's magic */

	movl	$boot_pdpt + PTE_TABLE, boot_pml4
	movl	$boot_pd + PTE_TABLE, boot_pdpt
	movl	$boot_pd, %edi
	movl	$PTE_2M, %eax
	movl	$512, %ecx
1:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	decl	%ecx
	jnz	1b

	lgdt	gdt_pointer
	paging_on
	ljmp	$SEL_KCODE, $start64

	.code64
start64:
	movl	$SEL_KDATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	fninit
	movl	%esi, %edi		/* magic */
	movl	%ebx, %esi		/* multiboot information */
	call	guest_main
1:	hlt
	jmp	1b

/*
 * Where the other vCPUs begin, in real mode: up to ap_start_end a copy at the
 * beginning of a page below 1 MiB.
 */
	.code16
	.globl	ap_start, ap_start_end
ap_start:
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	ap_gdt_pointer - ap_start
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$SEL_KCODE32, $ap_start32
ap_gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt
ap_start_end:

	.code32
ap_start32:
	movl	$SEL_KDATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	paging_on
	ljmp	$SEL_KCODE, $ap_start64

	.code64
ap_start64:
	movl	$1, %edi
	lock xaddl %edi, ap_next		/* its number */
	cmpl	$CPUS_MAX, %edi
	jae	1f
	movl	%edi, %eax
	shll	$AP_STACK_SHIFT, %eax
	leaq	ap_stacks(%rax), %rsp		/* its end: number 1 has the first */
	fninit
	call	guest_ap
1:	cli
	hlt
	jmp	1b

/*
 * void enter_user(void (*function)(uint64_t), uint64_t argument): goes on in ring 3
 * on the same stack, and never comes back.  No interrupt or fault is ever taken, so there
 * is neither a TSS nor an IDT: a fault is a triple fault, which ends QEMU
 * under -no-reboot.
 */
	.globl	enter_user
enter_user:
	movl	$SEL_UDATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movq	%rsp, %rax		/* as a call leaves it */
	pushq	$SEL_UDATA
	pushq	%rax
	pushq	$FLAGS_USER
	pushq	$SEL_UCODE
	pushq	%rdi
	movq	%rsi, %rdi
	iretq

	.section .rodata
	.balign	8
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	/* kernel code, 64-bit */
	.quad	0x00cf93000000ffff	/* kernel data */
	.quad	0x00cff3000000ffff	/* user data */
	.quad	0x00affb000000ffff	/* user code, 64-bit */
	.quad	0x00cf9b000000ffff	/* kernel code, 32-bit */
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt

	.bss
	.balign	4096
	.globl	boot_pdpt
boot_pml4:
	.skip	4096
boot_pdpt:
	.skip	4096
boot_pd:
	.skip	4096
	.skip	16384
stack_top:
ap_stacks:
	.skip	(CPUS_MAX - 1) << AP_STACK_SHIFT

	.data
	.balign	4
ap_next:
	.long	1

	.section .note.GNU-stack, "", @progbits
