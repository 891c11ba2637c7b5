package oci

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// always are the system calls of every program: they act on the caller, on what
// it has opened and on what the permissions of files let it do. Names that a
// kernel or an architecture does not have are passed over by the runtime.
//
// Not among them, beside what a capability opens below, is what no program of a
// container needs and what was a way out before: the keyrings, which no
// namespace divides (add_key, keyctl, request_key), userfaultfd, io_uring,
// nfsservctl, uselib, ustat, sysfs, _sysctl, pivot_root, kexec, swapon and
// swapoff, vm86.
const always = `
	read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2
	open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl
	lseek _llseek sendfile sendfile64 splice tee vmsplice copy_file_range readahead
	fadvise64 fadvise64_64 fallocate ftruncate ftruncate64 truncate truncate64
	fsync fdatasync sync syncfs sync_file_range pipe pipe2
	select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
	epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
	eventfd eventfd2 signalfd signalfd4 timerfd_create
	timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
	inotify_add_watch inotify_init inotify_init1 inotify_rm_watch fanotify_mark
	io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit

	access faccessat faccessat2 chdir fchdir getcwd
	chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32
	stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx
	statfs statfs64 fstatfs fstatfs64 statmount listmount file_getattr file_setattr
	getdents getdents64 link linkat unlink unlinkat symlink symlinkat readlink readlinkat
	mkdir mkdirat mknod mknodat rmdir rename renameat renameat2 umask
	utime utimes utimensat utimensat_time64 futimesat name_to_handle_at
	getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat
	setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat

	brk madvise membarrier mincore mmap mmap2 mprotect mremap msync munmap remap_file_pages cachestat
	mlock mlock2 mlockall munlock munlockall memfd_create memfd_secret map_shadow_stack mseal
	pkey_alloc pkey_free pkey_mprotect

	execve execveat exit exit_group fork vfork wait4 waitid waitpid
	kill tkill tgkill pause pidfd_open pidfd_send_signal process_mrelease
	sigaltstack signal sigaction sigpending sigprocmask sigreturn sigsuspend
	rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
	rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo restart_syscall
	set_robust_list get_robust_list set_tid_address set_thread_area get_thread_area rseq uretprobe
	futex futex_time64 futex_requeue futex_wait futex_waitv futex_wake
	prctl seccomp landlock_add_rule landlock_create_ruleset landlock_restrict_self

	getpid getppid gettid getpgid getpgrp setpgid getsid setsid
	getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32
	getresuid getresuid32 getresgid getresgid32 getgroups getgroups32
	setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32
	setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32
	capget capset getrlimit ugetrlimit setrlimit prlimit64 getrusage times sysinfo uname getcpu getrandom
	getpriority setpriority nice ioprio_get ioprio_set
	sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
	sched_get_priority_max sched_get_priority_min sched_getscheduler sched_setscheduler
	sched_rr_get_interval sched_rr_get_interval_time64 sched_yield

	alarm getitimer setitimer nanosleep clock_nanosleep clock_nanosleep_time64
	clock_getres clock_getres_time64 clock_gettime clock_gettime64 gettimeofday time
	adjtimex clock_adjtime clock_adjtime64
	timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64

	accept accept4 bind connect listen shutdown socketpair getpeername getsockname getsockopt setsockopt
	recv recvfrom recvmsg recvmmsg recvmmsg_time64 send sendto sendmsg sendmmsg

	ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64
	shmat shmctl shmdt shmget
	mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
	mq_timedsend mq_timedsend_time64 mq_unlink

	ptrace process_vm_readv process_vm_writev`

// withCap are the system calls that a capability opens. The kernel asks for the
// same one, mostly: the filter keeps its code out of reach.
var withCap = []struct{ cap, names string }{
	{"BPF", "bpf"},
	{"DAC_READ_SEARCH", "open_by_handle_at"},
	{"PERFMON", "perf_event_open"},
	{"SYS_ADMIN", `clone clone3 unshare setns
		mount umount umount2 mount_setattr move_mount open_tree open_tree_attr fsconfig fsmount fsopen fspick
		quotactl quotactl_fd fanotify_init lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr
		sethostname setdomainname
		bpf perf_event_open syslog`},
	{"SYS_BOOT", "reboot"},
	{"SYS_CHROOT", "chroot"},
	{"SYS_MODULE", "delete_module finit_module init_module"},
	{"SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
	{"SYS_PACCT", "acct"},
	{"SYS_PTRACE", "kcmp pidfd_getfd process_madvise"},
	{"SYS_RAWIO", "ioperm iopl"},
	{"SYS_TIME", "clock_settime clock_settime64 settimeofday stime"},
	{"SYS_TTY_CONFIG", "vhangup"},
	{"SYSLOG", "syslog"},
}

// An archNames is what one architecture has, as runtime.GOARCH.
type archNames struct{ arch, names string }

// onArch are the architectures that the profile was written for.
var onArch = []archNames{
	{"amd64", "arch_prctl modify_ldt"},
	{"arm64", "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"},
	{"riscv64", "riscv_flush_icache riscv_hwprobe"},
}

const (
	eperm  = 1
	enosys = 38

	afALG   = 38
	afVSOCK = 40

	// CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET
	cloneNewAny = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
)

// personalities are those that only change how a program sees memory and the
// system's name: Linux, Linux 32, both with UNAME26, and the question.
var personalities = []uint64{0x0, 0x8, 0x20000, 0x20008, 0xffffffff}

// defaultProfile is the filter of a container that names none: it allows what
// is listed and answers EPERM to the rest, as Docker's does.
func defaultProfile() profile {
	no := uint(eperm)
	p := profile{
		LinuxSeccomp: specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &no},
		// Docker names x32 too, which Debian's kernels have not enabled: a
		// program of it is killed. It costs the runtime 7 ms at each start.
		ArchMap: []archMap{
			{Arch: specs.ArchX86_64, Subs: []specs.Arch{specs.ArchX86}},
			{Arch: specs.ArchAARCH64, Subs: []specs.Arch{specs.ArchARM}},
		},
	}
	p.Syscalls = append(p.Syscalls, allowed(always))
	for _, n := range personalities {
		p.Syscalls = append(p.Syscalls, allowed("personality", arg(0, specs.OpEqualTo, n, 0)))
	}
	// AF_ALG is the kernel's cryptography, a way to root on every kernel before
	// May 2026 (CVE-2026-31431); AF_VSOCK leads to the hypervisor and is in no
	// namespace. The conditions of one rule must all hold, so it takes three; to
	// name the families one by one costs the runtime 4 ms at each start.
	//
	// The old call socketcall has its family in memory, where no filter sees it,
	// so it is not allowed. Docker allows it and has AppArmor refuse AF_ALG.
	// Programs of 32 bits that know no other call, as Go's, have no network.
	p.Syscalls = append(p.Syscalls,
		allowed("socket", arg(0, specs.OpLessThan, afALG, 0)),
		allowed("socket", arg(0, specs.OpEqualTo, afALG+1, 0)),
		allowed("socket", arg(0, specs.OpGreaterThan, afVSOCK, 0)))
	for _, a := range onArch {
		r := allowed(a.names)
		r.Includes.Arches = []string{a.arch}
		p.Syscalls = append(p.Syscalls, r)
	}
	for _, w := range withCap {
		r := allowed(w.names)
		r.Includes.Caps = []string{"CAP_" + w.cap}
		p.Syscalls = append(p.Syscalls, r)
	}
	p.Syscalls = append(p.Syscalls, clones()...)
	return p
}

// clones are the rules without CAP_SYS_ADMIN: threads and processes, but no
// namespaces. The flags of clone3 are in memory, where no filter sees them;
// with ENOSYS the C library falls back to clone.
func clones() []rule {
	plain := allowed("clone", arg(0, specs.OpMaskedEqual, cloneNewAny, 0))
	none := uint(enosys)
	missing := rule{LinuxSyscall: specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &none}}
	rules := []rule{plain, missing}
	for i := range rules {
		rules[i].Excludes.Caps = []string{"CAP_SYS_ADMIN"}
	}
	return rules
}

func allowed(names string, args ...specs.LinuxSeccompArg) rule {
	return rule{LinuxSyscall: specs.LinuxSyscall{Names: strings.Fields(names), Action: specs.ActAllow, Args: args}}
}

func arg(index uint, op specs.LinuxSeccompOperator, value, two uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: value, ValueTwo: two, Op: op}
}
