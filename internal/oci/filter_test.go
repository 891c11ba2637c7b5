package oci

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth"
)

// probeEnv is set where the test's own binary runs in a container.
const probeEnv = "BERTH_PROBE"

// TestProbe runs in a container and prints what system calls answer.
func TestProbe(t *testing.T) {
	if os.Getenv(probeEnv) == "" {
		t.Skip("it is run in a container by TestRunFilter")
	}
	call := func(name string, n uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0, 0, 0, 0)
		_, _, errno := unix.RawSyscall6(n, args[0], args[1], args[2], args[3], args[4], args[5])
		fmt.Printf("%s=%s\n", name, unix.ErrnoName(errno))
	}
	bad := ^uintptr(0)
	call("alg", unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET)
	call("vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM)
	call("unix", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM)
	call("inet6", unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_DGRAM)
	call("netlink", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW)
	call("keyctl", unix.SYS_KEYCTL, 0, bad)
	call("add_key", unix.SYS_ADD_KEY)
	call("io_uring", unix.SYS_IO_URING_SETUP, 1)
	call("userfaultfd", unix.SYS_USERFAULTFD, 1)
	call("bpf", unix.SYS_BPF, bad)
	call("perf", unix.SYS_PERF_EVENT_OPEN)
	call("handle", unix.SYS_OPEN_BY_HANDLE_AT, bad)
	call("userns", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	call("clone", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	call("clone3", unix.SYS_CLONE3)
	call("setns", unix.SYS_SETNS, bad)
	call("pivot", unix.SYS_PIVOT_ROOT)
	call("swapon", unix.SYS_SWAPON)
	call("kexec", unix.SYS_KEXEC_LOAD)
	call("module", unix.SYS_INIT_MODULE)
	call("reboot", unix.SYS_REBOOT)
	call("ptrace", unix.SYS_PTRACE, unix.PTRACE_PEEKTEXT, bad)
	call("personality", unix.SYS_PERSONALITY, 0x0400000) // READ_IMPLIES_EXEC
	call("asked", unix.SYS_PERSONALITY, 0xffffffff)
	call("uname", unix.SYS_UNAME)
	call("mempolicy", unix.SYS_SET_MEMPOLICY, bad)
}

// TestRunFilter makes the calls that an attacker would: what the filter refuses
// is EPERM, what comes through to the kernel is its own answer to nonsense.
func TestRunFilter(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	denied := strings.Fields("alg vsock keyctl add_key io_uring userfaultfd bpf perf handle userns clone setns pivot swapon kexec module reboot personality mempolicy")
	want := map[string]string{"clone3": "ENOSYS", "unix": "", "inet6": "", "netlink": "", "ptrace": "ESRCH", "asked": "", "uname": "EFAULT"}
	for _, name := range denied {
		want[name] = "EPERM"
	}
	probe := berth.Container{
		Mounts:  []berth.Mount{{Type: "bind", Source: self, Target: "/probe", Options: []string{"ro"}}},
		Process: berth.Process{Env: []string{probeEnv + "=1"}},
	}
	const script = "/probe -test.run '^TestProbe$' -test.v"
	for _, tool := range runtimes(t) {
		check(t, values(t, tool, script, probe, nil), want)

		// Capabilities open what is theirs, and a profile says all by itself.
		more := probe
		more.Security.CapAdd = []string{"SYS_NICE", "BPF"}
		check(t, values(t, tool, script, more, nil), map[string]string{"mempolicy": "EINVAL", "bpf": "EINVAL", "perf": "EPERM", "keyctl": "EPERM"})
		own := probe
		own.Security.Seccomp = "mine.json"
		check(t, values(t, tool, script, own, func(h *Host) {
			h.Seccomp = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"uname","action":"SCMP_ACT_ERRNO","errnoRet":13}]}`)
		}), map[string]string{"uname": "EACCES", "unix": ""})
	}
}
