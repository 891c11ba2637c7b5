package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// busyRoot makes a root file system of busybox, once.
var busyRoot = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "berth-root-"); err != nil {
		return "", err
	}
	scrap = append(scrap, dir)
	if err := os.Chmod(dir, 0o755); err != nil { // it is "/" of users other than root
		return "", err
	}
	const build = `cd "$1" && mkdir -p bin proc sys dev etc tmp && cp "$2" bin/busybox && for a in $(bin/busybox --list); do [ $a = busybox ] || ln -s busybox bin/$a; done
echo data > etc/data`
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("sh", "-c", build, "sh", dir, busybox).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// A dock is a host on which containers run. Its control groups are its own: it
// sees a group of each hierarchy as the whole of it.
type dock struct {
	*victim
	groups []string // directories, from outside
	before string
}

// newDock makes a host for containers, on which R is a root file system and the
// network front is there. What is on it when the test has ended, and was not
// there before that, fails the test.
func newDock(t *testing.T) *dock {
	t.Helper()
	for _, program := range []string{"conmon", "runc", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: scripts/setup installs it", err)
		}
	}
	root, err := busyRoot()
	if err != nil {
		t.Fatal(err)
	}
	d := &dock{victim: newVictim(t)}
	d.env = append(d.env, "R="+root)
	d.ownGroups(t)
	d.before = d.must(t, everything)
	d.must(t, "berth network create --subnet 10.1.0.0/24 front")
	t.Cleanup(func() {
		if !t.Failed() {
			d.empty(t)
		}
	})
	return d
}

// everything is bare and what containers add to it.
const everything = bare + `
find /sys/fs/cgroup -mindepth 1 -name 'berth*' ! -path '*/berthtest-*'
awk '{print "mount", $5}' /proc/self/mountinfo
find /run/berth/containers /run/berth/exits /run/berth/runtime /run/berth/locks/c-* /var/lib/berth/containers /var/lib/berth/images/*/* ! -path '*/images/locks/*' ! -path '*/images/blobs/sha256' ! -name containers ! -name exits ! -name runtime 2>/dev/null; true`

// empty takes everything away as a user does; nothing is left then.
func (d *dock) empty(t *testing.T) {
	t.Helper()
	d.must(t, `berth ps -aq | xargs -r berth rm -f >/dev/null; [ ! -e /var/lib/berth/images ] || berth image prune -a >/dev/null`)
	d.must(t, removal)
	after := d.must(t, everything)
	if left := beside(after, d.before); len(left) > 0 && !slices.ContainsFunc(left, func(l string) bool { return !strings.HasSuffix(l, "/berth-monitors") }) {
		// What had started a container again was in it until just now: the next
		// command removes the group.
		eventually(t, "a monitor does not end", func() bool { return len(d.processes()) == 0 })
		d.must(t, "berth reconcile")
		after = d.must(t, everything)
	}
	if after != d.before {
		t.Errorf("left behind: %q\ngone: %q\nprocesses: %d", beside(after, d.before), beside(d.before, after), d.processes())
	}
}

// beside are the lines of a text that another has not.
func beside(text, other string) []string {
	seen := strings.Split(other, "\n")
	return slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return slices.Contains(seen, line) })
}

// ownGroups gives the host control groups of its own.
func (d *dock) ownGroups(t *testing.T) {
	t.Helper()
	name := fmt.Sprintf("berthtest-%d-%d", os.Getpid(), d.Pid())
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		f := strings.Fields(line)
		if strings.HasPrefix(f[4], "/sys/fs/cgroup") && strings.Contains(line, " - cgroup") {
			d.groups = append(d.groups, filepath.Join(f[4], name))
		}
	}
	t.Cleanup(func() { d.dropGroups(t) })
	for _, g := range d.groups {
		at := filepath.Dir(g)
		if at == "/sys/fs/cgroup" { // v2: groups get what their parent hands on
			all, _ := os.ReadFile(at + "/cgroup.controllers")
			hand := "+" + strings.ReplaceAll(strings.TrimSpace(string(all)), " ", " +")
			os.WriteFile(at+"/cgroup.subtree_control", []byte(hand), 0) // the tests say what is missing
		}
		if err := os.Mkdir(g, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"/cpuset.cpus", "/cpuset.mems"} { // empty in a new group of v1
			if b, err := os.ReadFile(at + file); err == nil {
				os.WriteFile(g+file, b, 0)
			}
		}
		d.must(t, "mount --bind "+g+" "+at)
	}
}

// processes are those in the host's groups.
func (d *dock) processes() []int {
	var pids []int
	for _, g := range d.groups {
		filepath.WalkDir(g, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == "cgroup.procs" {
				b, _ := os.ReadFile(path)
				for _, s := range strings.Fields(string(b)) {
					pid, _ := strconv.Atoi(s)
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// dropGroups ends what is in the host's groups, and removes them.
func (d *dock) dropGroups(t *testing.T) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		for _, pid := range d.processes() {
			if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(line) > 0 {
				t.Logf("ended what still ran: %.300s", strings.ReplaceAll(string(line), "\x00", " "))
			}
			syscall.Kill(pid, syscall.SIGKILL)
		}
		left := false
		for _, g := range d.groups {
			var dirs []string
			filepath.WalkDir(g, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				left = syscall.Rmdir(dir) != nil || left
			}
		}
		if !left {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("control groups stay: %s", d.groups)
			return
		}
	}
}

// answer runs shell commands that must end with an exit status, and returns
// what they wrote.
func (d *dock) answer(t *testing.T, status int, script string) string {
	t.Helper()
	out, err := d.sh(script)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != status {
		t.Errorf("%s: exit status %d, want %d\n%s", script, got, status, out)
	}
	return out
}

// await repeats shell commands until they succeed. Under emulation (scripts/test-kernels)
// one start of a container has taken 20 s.
func (d *dock) await(t *testing.T, script string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		out, err := d.sh(script)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: never: %v\n%s\n%s", script, err, out, d.must(t, "berth ps -a"))
		}
	}
}
