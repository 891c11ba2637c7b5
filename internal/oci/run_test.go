package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth"
)

// runtimes are the OCI runtimes of this machine that can run here. crun 1.8
// knows no hybrid of the cgroup hierarchies.
func runtimes(t *testing.T) (list []string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	names := []string{"runc"}
	if unified() {
		names = append(names, "crun")
	}
	for _, name := range names {
		if p, err := exec.LookPath(name); err == nil {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		t.Skip("needs runc or crun")
	}
	return list
}

func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// busybox makes a root with a shell and nothing else.
func busybox(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "etc", "proc", "dev", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat grep id hostname mount umount ls stat touch mkdir chroot unshare mknod ping env pwd awk echo dd sysctl wc readlink ps nc") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/sh\n",
		"group":  "root:x:0:\nwww:x:33:\ntape:x:26:www\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// thisHost is the machine of the test, with a container's files in dir.
func thisHost(t *testing.T, id, root, dir string) Host {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	h := Host{
		Arch: runtime.GOARCH, Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(),
		Rootfs: root, Cgroup: "/berth-test/" + id,
		Hosts: filepath.Join(dir, "hosts"), ResolvConf: filepath.Join(dir, "resolv.conf"), Hostname: filepath.Join(dir, "hostname"),
	}
	var err error
	if h.Caps, err = Capabilities(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{h.Hosts, h.ResolvConf, h.Hostname} {
		if err := os.WriteFile(f, []byte("of the test: "+filepath.Base(f)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// run runs a container by its specification and is its output.
func run(t *testing.T, tool string, c berth.Container, f func(*Host)) string {
	t.Helper()
	dir := t.TempDir()
	c.ID = fmt.Sprintf("t%d-%d", os.Getpid(), time.Now().UnixNano())
	h := thisHost(t, c.ID, busybox(t), dir)
	var err error
	if h.User, err = ResolveUser(h.Rootfs, c.Process.User, c.Process.Groups); err != nil {
		t.Fatal(err)
	}
	if h.Files, err = Sources(c.Mounts); err != nil {
		t.Fatal(err)
	}
	if f != nil {
		f(&h)
	}
	s, err := Spec(c, h)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "--root", state, "run", "--bundle", dir, c.ID)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	cmd.WaitDelay = time.Second
	t.Cleanup(func() {
		late, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// It is gone already unless the test has failed.
		_ = exec.CommandContext(late, tool, "--root", state, "delete", "--force", c.ID).Run()
		noCgroup(t, c.ID)
	})
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s run: %v\n%s%s", tool, err, out.String(), problems.String())
	}
	return out.String()
}

// noCgroup reports what is left of a container in any hierarchy.
func noCgroup(t *testing.T, id string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/*/berth-test", "/sys/fs/cgroup/berth-test"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			if _, err := os.Stat(filepath.Join(dir, id)); err == nil {
				t.Errorf("left: %s/%s", dir, id)
			}
			// Other tests may have containers in it still.
			_ = os.Remove(dir)
		}
	}
}

// values runs a script that prints NAME=VALUE lines, with everything else of
// the container as given.
func values(t *testing.T, tool, script string, c berth.Container, f func(*Host)) map[string]string {
	t.Helper()
	c.Process.Command = []string{"/bin/sh", "-c", script}
	if c.Hostname == "" {
		c.Hostname = "box"
	}
	if c.Net.Mode == "" {
		c.Net.Mode = "none"
	}
	got := map[string]string{}
	for line := range strings.Lines(run(t, tool, c, f)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[name] = strings.TrimSpace(value)
	}
	return got
}

// confinement prints what a process sees of its own confinement.
const confinement = `
f() { awk -v k="$1:" '$1 == k { print $2 }' /proc/self/status; }
m() { awk -v d="$1" '$2 == d { print $3 " " $4 }' /proc/mounts; }
can() { if "$@" >/dev/null 2>&1; then echo yes; else echo no; fi; }
echo hostname=$(hostname)
echo uid=$(id -u) gid=$(id -g) groups=$(id -G)
echo caps=$(f CapEff) bounding=$(f CapBnd) inheritable=$(f CapInh) ambient=$(f CapAmb)
echo seccomp=$(f Seccomp)
echo nnp=$(f NoNewPrivs)
echo pid=$$
echo root=$(m / | grep -c '^[a-z0-9]* ro,')
echo writes=$(can touch /file)
echo writesdev=$(can touch /dev/file)
echo sys=$(m /sys)
echo cgroup=$(can mkdir /sys/fs/cgroup/x /sys/fs/cgroup/pids/x)
echo shm=$(m /dev/shm)
echo tmp=$(m /tmp)
echo hosts=$(cat /etc/hosts)
echo kcore=$(can grep -q . /proc/kcore)
echo panic=$(can sh -c 'echo 1 > /proc/sys/kernel/panic_on_oops')
echo mounts=$(can mount -t tmpfs none /tmp)
echo unshare=$(can unshare -n true)
echo ports=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
echo where=$(grep -c berth-test /proc/self/cgroup)
echo home=$HOME
echo term=$TERM
echo pwd=$(pwd)
`

func TestRunDefault(t *testing.T) {
	for _, tool := range runtimes(t) {
		got := values(t, tool, confinement, berth.Container{}, nil)
		check(t, got, map[string]string{
			"hostname": "box", "uid": "0 gid=0 groups=0",
			"caps":    "00000000a80425fb bounding=00000000a80425fb inheritable=0000000000000000 ambient=0000000000000000",
			"seccomp": "2", "nnp": "0", "pid": "1", "writes": "yes", "writesdev": "yes", "root": "0",
			"sys": "sysfs ro,nosuid,nodev,noexec,relatime", "cgroup": "no",
			"hosts": "of the test: hosts", "kcore": "no", "panic": "no", "mounts": "no", "unshare": "no",
			"ports": "0", "where": "0", "home": "/root", "term": "", "pwd": "/",
		})
		if want := "size=65536k"; !strings.Contains(got["shm"], want) {
			t.Errorf("/dev/shm is %s, want %s", got["shm"], want)
		}
	}
}

func TestRunConfined(t *testing.T) {
	for _, tool := range runtimes(t) {
		got := values(t, tool, confinement, berth.Container{
			ReadOnly: true, Hostname: "conf",
			Process:  berth.Process{User: "www", Dir: "/srv/new", Groups: []string{"77"}},
			Security: berth.Security{NoNewPrivileges: true, CapAdd: []string{"SYS_TIME"}, CapDrop: []string{"ALL"}},
			Mounts:   []berth.Mount{{Type: "tmpfs", Target: "/tmp", Options: []string{"size=1m"}}},
			Sysctls:  map[string]string{"net.ipv4.ip_unprivileged_port_start": "99"},
		}, nil)
		check(t, got, map[string]string{
			"hostname": "conf", "uid": "33 gid=33 groups=33 26 77",
			"caps":    "0000000000000000 bounding=0000000002000000 inheritable=0000000000000000 ambient=0000000000000000",
			"seccomp": "2", "nnp": "1", "writes": "no", "root": "1", "mounts": "no",
			"ports": "99", "home": "/srv", "pwd": "/srv/new",
		})
		for _, want := range []string{"tmpfs rw", "noexec", "nosuid", "nodev", "size=1024k"} {
			if !strings.Contains(got["tmp"], want) {
				t.Errorf("/tmp is %s, want %s", got["tmp"], want)
			}
		}
	}
}

func TestRunPrivileged(t *testing.T) {
	nodes, err := Devices("/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range runtimes(t) {
		got := values(t, tool, confinement+`
echo null=$(stat -c %t:%T /dev/null)
echo count=$(ls /dev | wc -l)
echo masked=$(cat /proc/mounts | grep -c /proc/kcore)
echo ptmx=$(readlink /dev/ptmx)
`, berth.Container{Security: berth.Security{Privileged: true}}, func(h *Host) { h.Devices = nodes })
		check(t, got, map[string]string{
			"seccomp": "0", "nnp": "0", "mounts": "yes", "unshare": "yes", "null": "1:3", "masked": "0",
			"sys": "sysfs rw,nosuid,nodev,noexec,relatime", "ptmx": "pts/ptmx",
		})
		all, err := Capabilities()
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%016x", all); !strings.HasPrefix(got["caps"], want) {
			t.Errorf("caps=%s, want all that this process has, %s", got["caps"], want)
		}
	}
}

// TestRunLimits reads the limits where the kernel has them.
func TestRunLimits(t *testing.T) {
	script := `
g() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2; }
echo memory=$(g memory.max memory/memory.limit_in_bytes)
echo pids=$(g pids.max pids/pids.max)
echo cpu=$(g cpu.max cpu/cpu.cfs_quota_us)
echo cpus=$(g cpuset.cpus cpuset/cpuset.cpus)
echo files=$(ulimit -n)
echo sda=$(stat -c %t:%T /dev/xfull)
`
	for _, tool := range runtimes(t) {
		got := values(t, tool, script, berth.Container{
			Limits:  berth.Limits{Memory: 64 << 20, Pids: 20, NanoCPUs: 5e8, CPUs: "0"},
			Process: berth.Process{Ulimits: []berth.Ulimit{{Name: "nofile", Soft: 77, Hard: 99}}},
			Devices: []berth.Device{{Source: "/dev/full", Target: "/dev/xfull"}},
		}, func(h *Host) {
			var err error
			if h.Devices, err = Devices("/dev/full"); err != nil {
				t.Fatal(err)
			}
		})
		cpu := "50000"
		if unified() {
			cpu = "50000 100000"
		}
		check(t, got, map[string]string{"memory": "67108864", "pids": "20", "cpu": cpu, "cpus": "0", "files": "77", "sda": "1:7"})
	}
}

// TestRunMounts: what is read-only is so with all that is mounted below it, and
// init is process 1.
func TestRunMounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, tool := range runtimes(t) {
		got := values(t, mounting(t, tool, filepath.Join(dir, "below")), `
can() { if "$@" >/dev/null 2>&1; then echo yes; else echo no; fi; }
echo rw=$(can touch /rw/file)
echo ro=$(can touch /ro/deep/file)
echo below=$(can touch /ro/deep/below/file)
echo type=$(awk '$2 == "/ro/deep/below" { print $3 }' /proc/mounts)
echo hosts=$(cat /etc/hosts)
echo parent=$PPID
echo one=$(can grep -q '/dev/[i]nit' /proc/1/cmdline)
`, berth.Container{
			Init: true,
			Mounts: []berth.Mount{
				{Type: "bind", Source: dir, Target: "/ro/deep", Options: []string{"ro"}},
				{Type: "bind", Source: dir, Target: "/rw"},
				{Type: "tmpfs", Target: "/ro"},
				{Type: "bind", Source: "/dev/null", Target: "/etc/hosts"},
			},
		}, func(h *Host) { h.Init = fakeInit(t) })
		check(t, got, map[string]string{"rw": "yes", "ro": "no", "below": "no", "type": "tmpfs", "hosts": "", "parent": "1", "one": "yes"})
	}
}

// mounting is the runtime in a mount namespace where a tmpfs is at dir.
func mounting(t *testing.T, tool, dir string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), filepath.Base(tool))
	script := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none %s && exec %s \"$@\"' sh \"$@\"\n", dir, tool)
	if err := os.WriteFile(name, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// fakeInit is a program that is told as tini is: -- COMMAND.
func fakeInit(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(name, []byte("#!/bin/sh\nshift\n\"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func check(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok || g != w {
			t.Errorf("%s=%s, want %s", name, g, w)
		}
	}
}
