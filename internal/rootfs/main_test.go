package rootfs

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a mount namespace of their own, so that nothing
// of them stays mounted. Inside a container, the program is the attacker.
func TestMain(m *testing.M) {
	switch os.Getenv("ROOTFS_TEST") {
	case "probe":
		probe()
	case "userns":
		probeUserns()
	case "suid":
		fmt.Print(os.Geteuid())
	case "mount":
		if _, err := Mount(os.Args[1], Options{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "image":
		if _, err := MountImage(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "inside":
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	default:
		if os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "needs root")
			os.Exit(1)
		}
		c := exec.Command("/proc/self/exe", os.Args[1:]...)
		c.Env = append(os.Environ(), "ROOTFS_TEST=inside")
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := c.Run(); err != nil {
			os.Exit(1)
		}
	}
}

// mounted mounts a root in a directory of its own.
func mounted(t testing.TB, o Options) (dir string, root Root) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "c", "host")
	root, err := Mount(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir, root
}

// newHost makes a tree that is the host's "/" for the test. Its file system is
// a tmpfs, or an overlay, which no two overlays can be put on.
func newHost(t *testing.T, onOverlay bool) string {
	t.Helper()
	dir := t.TempDir()
	mount := func(source, at, kind, options string) {
		t.Helper()
		if err := unix.Mount(source, at, kind, 0, options); err != nil {
			t.Fatalf("mount %s: %v", at, err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	mount("test", dir, "tmpfs", "mode=755")
	if onOverlay {
		for _, d := range []string{"lower", "upper", "work", "root"} {
			must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
		}
		root := filepath.Join(dir, "root")
		mount("overlay", root, "overlay", fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir))
		dir = root
	}
	before := host
	host = dir
	t.Cleanup(func() { host = before })
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put writes a file and its directories.
func put(t *testing.T, path, content string, mode uint32) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o600))
	must(t, unix.Chmod(path, mode))
}

// dockerCaps are the capabilities that Docker gives.
var dockerCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// runIn runs the attacker in a container of the distribution's runc, as
// Docker would set it up but without seccomp, so that everything is tried.
func runIn(t *testing.T, root Root, orders any) string {
	t.Helper()
	if program, err := elf.Open("/proc/self/exe"); err == nil {
		defer program.Close()
		if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Skip("the test program runs inside, where no libraries are: CGO_ENABLED=0")
		}
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Fatal("needs runc: apt-get install runc")
	}
	self, err := os.Executable()
	must(t, err)
	input, err := json.Marshal(orders)
	must(t, err)
	bundle := t.TempDir()
	put(t, filepath.Join(bundle, "orders"), string(input), 0o644)
	config, err := json.Marshal(spec(root, bind(self, "/probe/probe"), bind(filepath.Join(bundle, "orders"), "/probe/orders")))
	must(t, err)
	put(t, filepath.Join(bundle, "config.json"), string(config), 0o644)
	c := exec.CommandContext(t.Context(), "runc", "--root", filepath.Join(bundle, "state"), "run", "-b", bundle,
		fmt.Sprintf("rootfs-%d", os.Getpid()))
	var stdout, stderr strings.Builder
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		t.Fatalf("runc: %v\n%s%s", err, &stdout, &stderr)
	}
	return stdout.String()
}

type object = map[string]any

func bind(from, to string) object {
	return object{"destination": to, "source": from, "type": "bind", "options": []string{"bind", "ro"}}
}

// spec is the container's, as Docker would write it.
func spec(root Root, mounts ...object) object {
	caps := object{}
	for _, set := range []string{"bounding", "effective", "permitted"} {
		caps[set] = dockerCaps
	}
	var namespaces []object
	for _, kind := range []string{"pid", "mount", "ipc", "uts", "network"} {
		namespaces = append(namespaces, object{"type": kind})
	}
	return object{
		"ociVersion": "1.0.2",
		"root":       object{"path": root.Path},
		"process": object{
			"args": []string{"/probe/probe"}, "cwd": "/", "user": object{"uid": 0, "gid": 0}, "capabilities": caps,
			"env": []string{"ROOTFS_TEST=probe", "PATH=/usr/bin"},
		},
		"mounts": append([]object{
			{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
		}, mounts...),
		"linux": object{
			"namespaces":  namespaces,
			"cgroupsPath": fmt.Sprintf("/rootfs-test-%d", os.Getpid()),
			"resources":   object{"devices": []object{{"allow": false, "access": "rwm"}}},
			"maskedPaths": append(root.Masked, "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys",
				"/proc/latency_stats", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}
