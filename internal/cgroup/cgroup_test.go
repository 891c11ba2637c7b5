package cgroup

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"berth"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	const (
		tmpfs  = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
		cpu    = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
		memory = "35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
		named  = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
		empty  = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
		v2     = "41 31 0:38 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		other  = "42 31 0:39 / /mnt/pids rw - cgroup cgroup rw,pids\n"
	)
	v1 := map[string]string{
		"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory", "name=systemd": "/sys/fs/cgroup/systemd",
	}
	hybrid := map[string]string{"": "/sys/fs/cgroup/unified"}
	for k, v := range v1 {
		hybrid[k] = v
	}
	for _, tt := range []struct {
		name, mounts string
		want         Mode
	}{
		{"v1", tmpfs + cpu + memory + named + other, Mode{Version: V1, Mounts: v1}},
		{"hybrid", tmpfs + cpu + memory + named + empty, Mode{Version: Hybrid, Mounts: hybrid}},
		{"v2", v2 + other, Mode{Version: V2, Mounts: map[string]string{"": "/sys/fs/cgroup"}}},
		{"none", tmpfs + other, Mode{Mounts: map[string]string{}}},
		{"nothing a runtime can use", tmpfs + empty, Mode{Mounts: map[string]string{"": "/sys/fs/cgroup/unified"}}},
		{"garbage", "x\n - \n1 2 3 4 /sys/fs/cgroup - \n", Mode{Mounts: map[string]string{}}},
	} {
		if diff := cmp.Diff(tt.want, parse(tt.mounts)); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// detect returns the machine's mode.
func detect(t *testing.T) Mode {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDetect(t *testing.T) {
	m := detect(t)
	t.Logf("%s: %v, swap %v", m.Version, m.Controllers(), m.Swap)
	for _, c := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
		if !m.Has(c) {
			t.Errorf("no controller %s", c)
		}
	}
	if m.Has("coffee") || !slices.IsSorted(m.Controllers()) || slices.Contains(m.Controllers(), "") {
		t.Errorf("controllers %q", m.Controllers())
	}
}

// newGroup returns a group that ends with the test, of which nothing is left.
func newGroup(t *testing.T) Group {
	t.Helper()
	m := detect(t)
	top := m.Group("/berth-test-" + rand.Text())
	g := m.Group(top.String() + "/c")
	t.Cleanup(func() {
		if err := errors.Join(top.Kill(), top.Remove()); err != nil {
			t.Error(err)
		}
		if top.Exists() {
			t.Errorf("%s is still there", top)
		}
	})
	for _, d := range g.dirs() {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if m.Version == V2 { // as a runtime does it
		for _, d := range []string{unifiedRoot, top.dir("")} {
			put(t, d, "cgroup.subtree_control", "+cpu +cpuset +io +memory +pids")
		}
	}
	return g
}

// put writes a limit, as a runtime does it.
func put(t *testing.T, dir, name, value string) {
	t.Helper()
	if err := write(dir, name, value); err != nil {
		t.Fatal(err)
	}
}

// byMode picks the name of a file.
func byMode(g Group, v1, v2 string) string {
	if g.mode.Version == V2 {
		return v2
	}
	return v1
}

// A process is a child in a group.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start runs a script of busybox in the group. It ends with the test.
func start(t *testing.T, g Group, script string) process {
	t.Helper()
	p := process{cmd: exec.Command("busybox", "sh", "-c", "read go; "+script)}
	var err, err2 error
	p.in, err = p.cmd.StdinPipe()
	out, err2 := p.cmd.StdoutPipe()
	if err := errors.Join(err, err2, p.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	if err := g.Add(p.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.in, "go")
	return p
}

// line waits for a line of the process.
func (p process) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the process says nothing: %v", err)
	}
	return strings.TrimSpace(s)
}

// until tries until it is so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		_, _ = poll(-1, 0, time.Millisecond)
	}
}

func TestProcesses(t *testing.T) {
	g := newGroup(t)
	if pids, err := g.Processes(); err != nil || len(pids) != 0 {
		t.Fatalf("an empty group: %v, %v", pids, err)
	}
	nested := g.mode.Group(g.String() + "/below")
	a, b := start(t, g, "echo a; read end"), start(t, nested, "echo b; read end")
	a.line(t)
	b.line(t)
	want := []int{a.cmd.Process.Pid, b.cmd.Process.Pid}
	slices.Sort(want)
	if pids, err := g.Processes(); err != nil || !slices.Equal(pids, want) {
		t.Errorf("%v, %v, want %v", pids, err, want)
	}
	if pids, err := g.mode.Group("/berth-test-none").Processes(); err != nil || len(pids) != 0 {
		t.Errorf("a group that is not there: %v, %v", pids, err)
	}
}

func TestAddIsInEveryHierarchy(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "cat /proc/self/cgroup; echo; read end")
	n := 0
	for s := p.line(t); s != ""; s = p.line(t) {
		if n++; !strings.HasSuffix(s, ":"+g.String()) {
			t.Errorf("a process is in %s, want %s", s, g)
		}
	}
	if n < len(g.dirs()) {
		t.Errorf("%d hierarchies, want %d", n, len(g.dirs()))
	}
}

func TestRemoveWaitsForTheLast(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "echo in; read end")
	p.line(t)
	err := g.remove(time.Now())
	if !errors.Is(err, berth.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(p.cmd.Process.Pid)) {
		t.Fatalf("removed with a process in it: %v", err)
	}
	done := make(chan error)
	go func() { done <- g.Remove() }()
	p.in.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if g.Exists() {
		t.Error("it is still there")
	}
	if err := g.Remove(); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestKill(t *testing.T) {
	g := newGroup(t)
	nested := g.mode.Group(g.String() + "/below")
	// One that does not want to, a child that has left its session, one that
	// forks all the time, and one that is frozen in a group of its own.
	a := start(t, g, "trap '' TERM INT; setsid sleep 1000 & echo a; while :; do sleep 1000 & wait; done")
	b := start(t, g, "echo b; while :; do (:); done")
	c := start(t, nested, "echo c; read end")
	for _, p := range []process{a, b, c} {
		p.line(t)
	}
	if g.mode.Version == V2 {
		put(t, nested.dir(""), "cgroup.freeze", "1")
	} else {
		put(t, nested.dir("freezer"), "freezer.state", "FROZEN")
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("after the kill: %v, %v", pids, err)
	}
	if err := errors.Join(g.Remove(), g.Kill()); err != nil {
		t.Error(err)
	}
	for _, d := range g.dirs() {
		if exists(d) {
			t.Errorf("%s is still there", d)
		}
	}
}

func TestTheRootIsNobodys(t *testing.T) {
	m := Mode{Version: V2, Mounts: map[string]string{"": "/berth-test-none"}}
	for _, p := range []string{"", "/", "/..", "/a/.."} {
		g := m.Group(p)
		for _, err := range []error{g.Kill(), g.Remove(), g.Prune(), g.Add(1)} {
			if !errors.Is(err, berth.ErrInvalid) {
				t.Errorf("%q: %v", p, err)
			}
		}
	}
}

func TestPruneLeavesWhatIsUsed(t *testing.T) {
	g := newGroup(t)
	top := g.mode.Group(path.Dir(g.String()))
	if err := top.Prune(); err != nil || !g.Exists() {
		t.Fatalf("%v; is there: %v", err, g.Exists())
	}
	if err := errors.Join(g.Prune(), top.Prune(), top.Prune()); err != nil || top.Exists() {
		t.Errorf("%v; is there: %v", err, top.Exists())
	}
}
