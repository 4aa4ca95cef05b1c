/*
 * From the first instruction to ring 3 in as few ring-0 instructions as can be: where KVM emulates
 * ring 0 each of them costs, and in ring 3 the machine runs at full speed. Page tables and
 * descriptors therefore lie ready in the image. Interrupts stay off and there is no IDT: an
 * exception is a triple fault. Ports are ring 3's by IOPL and, for a paravirtual KVM that doesn't
 * know of it, by the task's I/O permission map, which is all zeros.
 *
 * PVH boot ABI: 32-bit protected mode, paging off, ebx = struct hvm_start_info.
 * Linux 64-bit boot protocol: long mode, some identity map, rsi = struct boot_params.
 */

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .section .boot, "ax"
    .code64
    .globl linux_entry
linux_entry:
    cli
    movl    $1, %edi
    jmp     to_long_mode_tables

    .code32
    .globl pvh_entry
pvh_entry:
    cli
    movl    %ebx, %esi
    lgdtl   gdt_pointer
    movl    %cr4, %eax
    orl     $0x20, %eax             /* PAE */
    movl    %eax, %cr4
    movl    $page_map, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx       /* EFER.LME */
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80000000, %eax       /* PG */
    movl    %eax, %cr0
    ljmpl   $0x10, $from_pvh
    .code64
from_pvh:
    movl    $2, %edi

to_long_mode_tables:
    lgdt    gdt_pointer
    movl    $page_map, %eax
    movq    %rax, %cr3
    movq    %cr4, %rax
    orq     $0x600, %rax            /* OSFXSR, OSXMMEXCPT */
    movq    %rax, %cr4
    movq    %cr0, %rax
    andl    $0xfffffff3, %eax       /* not TS, not EM */
    orl     $2, %eax                /* MP */
    movq    %rax, %cr0
    movl    $task_state, %eax       /* its address, into its descriptor's three places */
    movw    %ax, task_descriptor + 2
    shrl    $16, %eax
    movb    %al, task_descriptor + 4
    movb    %ah, task_descriptor + 7
    movw    $104, task_state + 102  /* where the I/O permission map lies in it */
    movl    $0x38, %eax
    ltr     %ax
    movl    $0x2b, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    $boot_stack_top, %esp
    pushq   $0x2b                   /* ss */
    pushq   $boot_stack_top         /* rsp */
    pushq   $0x3002                 /* rflags: IOPL 3, IF 0 */
    pushq   $0x33                   /* cs */
    pushq   $enter                  /* rip */
    iretq

/* Ring 3. rdi: 1 Linux, 2 PVH; rsi: what the monitor handed over. */
enter:
    call    probe_main
    ud2

/*
 * Where a second processor starts after its SIPI: real mode, cs:ip = vector * 0x100 : 0. It is
 * copied below 1 MiB. The processor counts itself and rests.
 */
    .code16
    .globl trampoline_start
trampoline_start:
    cli
    lgdtl   %cs:(trampoline_gdt_pointer - trampoline_start)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $0x08, $processor_in_protected_mode
    .balign 4
trampoline_gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt
    .globl trampoline_end
trampoline_end:
    .code32
processor_in_protected_mode:
    movl    $0x18, %eax
    movl    %eax, %ds
    lock incl processors_started
1:  hlt
    jmp     1b
    .code64

    .section .tables, "aw"
    .balign 4096
/* Identity map of the first 8 GiB in 2 MiB pages, all of it present, writable and the user's. */
    .globl page_map
page_map:
    .quad   page_directory_pointers + 7
    .fill   511, 8, 0
page_directory_pointers:
    .set    table, 0
    .rept   8
    .quad   page_directories + table * 4096 + 7
    .set    table, table + 1
    .endr
    .fill   504, 8, 0
page_directories:
    .set    frame, 0
    .rept   8 * 512
    .quad   (frame << 21) + 0x87
    .set    frame, frame + 1
    .endr

/* The selectors are Linux's: a paravirtual KVM runs natively only what looks like them. */
    .balign 8
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff      /* 0x08 ring 0, 32-bit code */
    .quad   0x00af9b000000ffff      /* 0x10 ring 0, 64-bit code */
    .quad   0x00cf93000000ffff      /* 0x18 ring 0, data */
    .quad   0x00cffb000000ffff      /* 0x23 ring 3, 32-bit code */
    .quad   0x00cff3000000ffff      /* 0x2b ring 3, data */
    .quad   0x00affb000000ffff      /* 0x33 ring 3, 64-bit code */
task_descriptor:                        /* 0x38 */
    .quad   0x0000890000000000 + 104 + 8192
    .quad   0
gdt_end:
    .balign 4
gdt_pointer:
    .word   gdt_end - gdt - 1
    .quad   gdt

    .section .bss
    .balign 4
    .globl processors_started
processors_started:
    .skip   4
    .balign 16
task_state:
    .skip   104 + 8192 + 8
    .balign 16
    .skip   65536
boot_stack_top:
