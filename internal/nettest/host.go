// Package nettest makes test hosts. A host is a process that holds a fresh
// network namespace and a fresh mount namespace: what a test does in it never
// reaches the machine, and all of it ends with the test. Only tests import it.
//
// A [Host] starts with a loopback that is up, no other link, no firewall and
// no forwarding; /run and /var/lib/berth are empty and its own, /sys shows its
// own links. [Host.LAN] wires a second host to it as the network outside.
// [Serve], [Dial] and [Ping] make traffic from the test process itself, in any
// namespace. For testscript there are [Script], [Commands] and [Inside].
//
// It does not isolate pids, users or other files.
package nettest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/netns"
)

// A Host is a namespace that stands for a machine.
type Host struct {
	holder *exec.Cmd
	alive  io.Closer // the holder ends when this closes, also if the test is killed
	ns     *netns.NS
}

// NewHost makes a host that ends with the test. It skips the test if the
// caller is not root.
func NewHost(t testing.TB) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	h, err := start()
	if err != nil {
		t.Fatalf("make a test host: %v", err)
	}
	t.Cleanup(func() {
		for _, p := range h.stop() {
			t.Logf("ended what still ran in the test host: %s", p)
		}
	})
	return h
}

// start makes a host; stop ends it.
func start() (*Host, error) {
	h := &Host{}
	err := onSpareThread(func() error {
		if err := isolate(); err != nil {
			return err
		}
		// cat ends when its input does. Pdeathsig would not do: it follows the
		// thread that started the process, and this one ends at once.
		h.holder = exec.Command("cat")
		h.holder.Dir = "/"
		in, err := h.holder.StdinPipe()
		if err != nil {
			return err
		}
		h.alive = in
		return h.holder.Start()
	})
	if err != nil {
		return nil, err
	}
	if h.ns, err = netns.Open(fmt.Sprintf("/proc/%d/ns/net", h.Pid())); err != nil {
		h.stop()
		return nil, err
	}
	if err := h.Do(quiet); err != nil {
		h.stop()
		return nil, err
	}
	return h, nil
}

// onSpareThread runs fn on a thread that ends with it, so fn may leave the
// thread in other namespaces. It is never the main thread, whose namespaces
// /proc/self shows and which does not end.
func onSpareThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			done <- onSpareThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}

// isolate moves the thread into a network and a mount namespace of its own.
func isolate() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := ownSys(); err != nil {
		return err
	}
	// /var/lib/berth need not be there, and making it would be seen outside: an
	// overlay takes it. Its layers hide below the second /run.
	if err := mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/upper", "/run/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/var/lib", "overlay", 0, "lowerdir=/var/lib,upperdir=/run/upper,workdir=/run/work"); err != nil {
		return err
	}
	if err := os.MkdirAll("/var/lib/berth", 0o700); err != nil {
		return err
	}
	if err := mount("tmpfs", "/var/lib/berth", "tmpfs", 0, "mode=700"); err != nil {
		return err
	}
	return mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
}

// ownSys mounts a sysfs that shows the links of the thread's namespace, and
// keeps the control groups below it.
func ownSys() error {
	const cgroups = "/sys/fs/cgroup"
	tree, err := unix.OpenTree(unix.AT_FDCWD, cgroups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", cgroups, err)
	}
	defer unix.Close(tree)
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	err = unix.MoveMount(tree, "", unix.AT_FDCWD, cgroups, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("move_mount %s: %w", cgroups, err)
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// quiet brings the thread's namespace to the same start on every machine: a
// fresh namespace inherits the IPv4 settings of the initial one.
func quiet() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return os.NewSyscallError("SIOCSIFFLAGS", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo))
}

// stop ends the host and every process that still runs in it, and tells which
// these were.
func (h *Host) stop() []string {
	left := h.endProcesses()
	h.alive.Close()
	h.holder.Wait() // its exit says nothing
	if h.ns != nil {
		h.ns.Close()
	}
	return left
}

// endProcesses kills what sees the host's /run; that is ours alone, so nothing
// else can be meant. The mount namespace does not tell: ip-netns(8) runs what it
// runs in a copy. A container's processes see another root; they are in a cgroup
// of its id.
func (h *Host) endProcesses() (ended []string) {
	groups := h.groups()
	defer removeGroups(groups)
	var own, other unix.Stat_t
	if err := unix.Stat(h.Path("/run"), &own); err != nil {
		return nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == h.Pid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// The pid is held by fd from here on: it cannot come to mean another.
		err = unix.Stat(dir+"/root/run", &other)
		if err == nil && other.Dev == own.Dev || inGroup(dir, groups) {
			line, _ := os.ReadFile(dir + "/cmdline") // only for the report
			ended = append(ended, strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // best effort: it may have ended
		}
		unix.Close(fd)
	}
	return ended
}

// groups are the cgroups of the containers that Berth has in the host.
func (h *Host) groups() (paths []string) {
	found, _ := filepath.Glob(h.Path("/run/berth/containers/*")) // its pattern is right
	for _, dir := range found {
		paths = append(paths, "/berth/"+filepath.Base(dir))
	}
	return paths
}

// inGroup reports whether a process, a directory of /proc, is in a cgroup.
func inGroup(dir string, groups []string) bool {
	own, _ := os.ReadFile(dir + "/cgroup") // one that has ended is in none
	return slices.ContainsFunc(groups, func(g string) bool { return strings.Contains(string(own), g) })
}

// removeGroups removes cgroups whose processes are ending.
func removeGroups(groups []string) {
	deadline := time.Now().Add(5 * time.Second)
	for _, g := range groups {
		v1, _ := filepath.Glob("/sys/fs/cgroup/*" + g)
		for _, dir := range append(v1, "/sys/fs/cgroup"+g) {
			for unix.Rmdir(dir) == unix.EBUSY && time.Now().Before(deadline) {
				runtime.Gosched()
			}
		}
	}
}

// Pid is the process that holds the host's namespaces.
func (h *Host) Pid() int { return h.holder.Process.Pid }

// NS is the host's network namespace, open until the host ends.
func (h *Host) NS() *netns.NS { return h.ns }

// Do runs fn on a thread in the host's network namespace. Files are those of
// the machine, not of the host: see [Host.Path].
func (h *Host) Do(fn func() error) error { return h.ns.Do(fn) }

// Path is where the test process finds a file of the host, as
// "/run/netns/c1".
func (h *Host) Path(file string) string { return fmt.Sprintf("/proc/%d/root%s", h.Pid(), file) }

// Command is a command that will run in the host, in the test's directory.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	wd, err := os.Getwd()
	if err != nil {
		wd = "/"
	}
	return exec.Command("nsenter", append(h.enter(wd), append([]string{name}, args...)...)...)
}

// enter is how nsenter(1) is told to go into the host, working in wd.
func (h *Host) enter(wd string) []string {
	return []string{"-t", strconv.Itoa(h.Pid()), "-m", "-n", "-W", wd, "--"}
}

// Try runs a command in the host and returns what it wrote, to either stream.
func (h *Host) Try(name string, args ...string) (string, error) {
	out, err := h.Command(name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), err
}

// Run runs a command in the host and returns its standard output. The test
// ends if the command fails.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.Command(name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s%s", out, exit.Stderr)
		}
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}

// In runs a command in the host's named namespace.
func (h *Host) In(t testing.TB, ns string, args ...string) string {
	t.Helper()
	return h.Run(t, "ip", append([]string{"netns", "exec", ns}, args...)...)
}

// Netns makes a namespace of the host with ip-netns(8), as a user would, and
// opens it until the test ends.
func (h *Host) Netns(t testing.TB, name string) *netns.NS {
	t.Helper()
	h.Run(t, "ip", "netns", "add", name)
	return h.Open(t, name)
}

// Open opens a named namespace of the host until the test ends.
func (h *Host) Open(t testing.TB, name string) *netns.NS {
	t.Helper()
	ns, err := netns.Open(h.Path(netns.Path(name)))
	if err != nil {
		t.Fatalf("open namespace %s: %v", name, err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// BrNetfilter says whether bridged packets of the host pass through its IPv4
// and IPv6 firewall. It skips the test if the kernel has no br_netfilter.
func (h *Host) BrNetfilter(t testing.TB, on bool) {
	t.Helper()
	value := "0"
	if on {
		value = "1"
	}
	err := h.Do(func() error {
		for _, name := range []string{"iptables", "ip6tables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("this kernel has no br_netfilter")
	}
	if err != nil {
		t.Fatalf("set br_netfilter: %v", err)
	}
}
