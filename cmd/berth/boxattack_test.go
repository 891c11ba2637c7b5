package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attackEnv has the orders of an attacker: this program, in a container.
const attackEnv = "BERTH_ATTACK"

// orders are what the attacker is told of the host.
type orders struct {
	Key     string // description of a key of root's
	Sockets []string
	Pid     int    // of a process of the host
	Line    string // its command line
}

// TestBoxIsClosed runs an attacker in containers as berth makes them, as root, a
// user and nobody: over this host's programs and over a directory. What the files
// of the host show is internal/rootfs's matter.
func TestBoxIsClosed(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	run := d.attacker(t)
	for _, root := range []string{"host", "$R"} {
		for _, user := range []string{"0", "1000:1000", "65534:65534"} {
			d.says(t, run+"--network front -u "+user+" --rootfs "+root+" /attacker", "")
		}
	}
}

// TestAttackerGetsOut: in a container that is open, the same attacker gets through
// with each of its tricks.
func TestAttackerGetsOut(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	run := d.attacker(t)
	out := d.must(t, run+"--network host --pid host --privileged --security-opt seccomp=unconfined -v /run:/run --rootfs $R /attacker")
	for _, trick := range []string{
		"read a key of root's", "a new key", "mounted a tmpfs", "opened a file system", "changed a mount", "a user namespace", "made a device",
		"a control group", "opened /proc/sys/kernel/core_pattern", "connected to /run/", "connected to @", "sees a process of the host", "bpf", "handle",
	} {
		if !strings.Contains(out, trick) {
			t.Errorf("the attacker did not get through: %s\n%s", trick, out)
		}
	}
}

// attacker sets traps on the host and returns how the attacker is run.
func (d *dock) attacker(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := orders{Key: fmt.Sprintf("berth-test-%d", d.Pid()), Pid: d.Pid(), Line: "cat\x00"}
	key, err := unix.AddKey("user", o.Key, []byte("secret"), unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		t.Fatalf("a key for a trap: %v", err)
	}
	t.Cleanup(func() { unix.KeyctlInt(unix.KEYCTL_UNLINK, key, unix.KEY_SPEC_USER_KEYRING, 0, 0) })
	err = d.Do(func() error {
		for _, name := range []string{"@berth-trap", d.Path("/run/trap")} {
			l, err := net.Listen("unix", name)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
		}
		return os.Chmod(d.Path("/run/trap"), 0o777)
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Sockets = []string{"@berth-trap", "/run/trap", "/var/run/trap"}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("berth run --rm -e %s='%s' -v %s:/attacker:ro ", attackEnv, text, self)
}

// attack tries what gets out of a container, and prints each trick that did
// something.
func attack(text string) {
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Println("orders:", err)
	}
	for _, part := range []func(orders) map[string]error{ofKeys, ofGroups, ofTheKernel, ofOthers, ofMounts} {
		for trick, err := range part(o) {
			if err == nil {
				fmt.Println("got through:", trick)
			}
		}
	}
}

// ofKeys tries the keyrings, which no namespace divides.
func ofKeys(o orders) map[string]error {
	// Whoever has a keyring in his session possesses what is in it.
	unix.KeyctlInt(unix.KEYCTL_LINK, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, 0, 0)
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", o.Key, 0)
	if err == nil {
		_, err = unix.KeyctlBuffer(unix.KEYCTL_READ, id, make([]byte, 64), 0)
	}
	_, asked := unix.RequestKey("user", o.Key, "", 0)
	_, added := unix.AddKey("user", "berth-test-of-attacker", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
	_, session := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_SESSION_KEYRING, false)
	keys, listed := os.ReadFile("/proc/keys")
	if listed == nil && len(bytes.TrimSpace(keys)) == 0 {
		listed = errors.New("it is empty")
	}
	return map[string]error{
		"read a key of root's": err, "requested a key of root's": asked, "a new key": added, "the session of a user": session, "/proc/keys": listed,
	}
}

// ofMounts tries to change what is mounted, and to make namespaces and devices.
func ofMounts(orders) map[string]error {
	dir, _ := os.MkdirTemp("/tmp", "attack")
	defer os.Remove(dir)
	done := map[string]error{"mounted a tmpfs": unix.Mount("tmpfs", dir, "tmpfs", 0, "")}
	unix.Unmount(dir, unix.MNT_DETACH)
	fd, err := unix.Fsopen("tmpfs", 0)
	done["opened a file system"] = err
	unix.Close(fd)
	done["changed a mount"] = unix.Mount("", "/proc", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID, "")
	for _, at := range []string{"/proc/sys", "/sys/fs/cgroup", "/etc/hosts"} {
		done["unmounted "+at] = unix.Unmount(at, unix.MNT_DETACH)
	}
	done["entered a namespace"] = unix.Setns(opened("/proc/1/ns/mnt"), 0)
	node := filepath.Join(dir, "log")
	unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11)))
	f, err := os.Open(node)
	if err == nil {
		f.Close()
	}
	done["made a device"] = err
	os.Remove(node)
	// Last: it cannot be left.
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	if errno == unix.EINVAL {
		done["clone3"] = nil // the kernel's own answer to nonsense
	}
	child, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		done["a user namespace"] = errno
		return done
	}
	if child == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	unix.Wait4(int(child), nil, 0, nil)
	done["a user namespace"] = nil
	return done
}

func opened(path string) int {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// ofGroups tries to leave the control group, or to make another.
func ofGroups(orders) map[string]error {
	done := map[string]error{}
	for _, g := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"} {
		made := os.Mkdir(g+"/attack", 0o755)
		if made == nil {
			// What v1 mounts its hierarchies in is a plain tmpfs.
			_, made = os.Stat(g + "/attack/cgroup.procs")
			os.Remove(g + "/attack")
		}
		done["a control group in "+g] = made
		for _, file := range []string{"cgroup.procs", "release_agent", "memory.limit_in_bytes", "memory.max", "pids.max"} {
			done["opened "+g+"/"+file] = writes(g + "/" + file)
		}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(own)) {
		if !strings.HasSuffix(line, ":/\n") {
			done["sees that its group is "+line] = err
		}
	}
	return done
}

func writes(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// ofTheKernel tries what is the host's own in /proc and /sys, and calls that lead
// into the kernel. Nothing is written.
func ofTheKernel(orders) map[string]error {
	done := map[string]error{}
	for _, path := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/sys/kernel/uevent_helper", "/sys/power/state", "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/loop-control",
	} {
		done["opened "+path] = writes(path)
	}
	if kcore, err := os.Open("/proc/kcore"); err == nil {
		_, err = kcore.Read(make([]byte, 1))
		done["read /proc/kcore"] = err
	}
	call := func(name string, trap uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0)
		// What gets through is the kernel's answer to nonsense.
		if _, _, errno := unix.Syscall(trap, args[0], args[1], args[2]); errno == 0 || errno == unix.EINVAL || errno == unix.EFAULT || errno == unix.EBADF {
			done[name] = nil
		}
	}
	handle := struct{ size, kind uint32 }{1 << 20, 0}
	call("bpf", unix.SYS_BPF, 1<<20)
	call("handle", unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), uintptr(unsafe.Pointer(&handle)), 0)
	call("io_uring", unix.SYS_IO_URING_SETUP, 1)
	call("userfaultfd", unix.SYS_USERFAULTFD, 1<<20)
	call("the log of the kernel", unix.SYS_SYSLOG, 10)
	return done
}

// ofOthers tries the host's sockets and processes.
func ofOthers(o orders) map[string]error {
	done := map[string]error{}
	for _, name := range o.Sockets {
		c, err := net.Dial("unix", name)
		if err == nil {
			c.Close()
		}
		done["connected to "+name] = err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", o.Pid))
	if err == nil && string(line) != o.Line {
		err = errors.New("it is another one")
	}
	done["sees a process of the host"] = err
	return done
}
