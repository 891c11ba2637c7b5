package demo_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/cli"
	"berth/internal/nettest"
)

// asProgram makes the test program be berth.
const asProgram = "BERTH_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	// In a container it is called by the name of the copy, without the variable.
	if os.Getenv(asProgram) != "" || filepath.Base(os.Args[0]) == "berth" {
		os.Exit(cli.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// program is where hosts find berth, which any user may run there.
const program = "/run/berth-program"

// newHost makes a host with the program in it.
func newHost(t *testing.T) *nettest.Host {
	t.Helper()
	h := nettest.NewHost(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Path(program), self, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(asProgram, "1")
	return h
}

// traces is all that a demo might leave on a host.
func traces(t *testing.T, h *nettest.Host) string {
	t.Helper()
	return h.Run(t, "sh", "-c", "ls /sys/class/net; ip -o addr; ip netns list; nft -s list ruleset; sysctl net.ipv4.ip_forward; ls /run /var/lib/berth; grep -c . /proc/self/mounts")
}

// containers reports whether this machine can run them.
func containers() bool {
	_, err1 := exec.LookPath("runc")
	_, err2 := exec.LookPath("crun")
	_, err3 := exec.LookPath("conmon")
	return (err1 == nil || err2 == nil) && err3 == nil
}

// noGroups looks that a demo's control group is gone.
func noGroups(t *testing.T, demo int) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/berth-demo-%d", "/sys/fs/cgroup/*/berth-demo-%d"} {
		if found, _ := filepath.Glob(fmt.Sprintf(pattern, demo)); len(found) > 0 {
			t.Errorf("control groups are left: %q", found)
		}
	}
}

// The expectations of the demos with sandboxes only, and with containers.
const withSandboxes, withContainers = 58, 103

var met = regexp.MustCompile(`(?m)^(\d+) expectations met$`)

// allMet reports how many expectations were met, if all were.
func allMet(t *testing.T, out string) int {
	t.Helper()
	m := met.FindStringSubmatch(out)
	if m == nil || strings.Contains(out, "FAIL") {
		t.Fatalf("the demo failed:\n%s", out)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil || n != strings.Count(out, "\n  ok   ") {
		t.Errorf("%s, but there are %d", m[0], strings.Count(out, "\n  ok   "))
	}
	return n
}

// TestDemo plays all demos and looks that nothing of it is left.
func TestDemo(t *testing.T) {
	for _, tt := range []struct {
		bridged bool
		say     string
	}{
		{true, "neighbours are cut off"},
		{false, "neighbours still reach each other"},
	} {
		t.Run(fmt.Sprintf("br_netfilter=%v", tt.bridged), func(t *testing.T) {
			h := newHost(t)
			h.BrNetfilter(t, tt.bridged)
			before := traces(t, h)
			cmd := h.Command(program, "demo", "--commands")
			all, err := cmd.CombinedOutput()
			out := string(all)
			want := withSandboxes
			if containers() {
				want = withContainers
			}
			if n := allMet(t, out); n != want || err != nil {
				t.Errorf("%d expectations, want %d; %v:\n%s", n, want, err, out)
			}
			noGroups(t, cmd.Process.Pid)
			for _, want := range []string{"=== Demo 0:", "=== Demo 1:", "=== Demo 1.5:", "=== Demo 2:", "=== Demo 3:", "=== Demo 4:", "ip link add", "nft ", "\n\tchain forward {\n"} {
				if !strings.Contains(out, want) {
					t.Errorf("nothing says %q:\n%s", want, out)
				}
			}
			if after := traces(t, h); after != before {
				t.Errorf("the demo left something:\nbefore:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// TestSomeDemos plays what was asked for, beside a store and settings of the
// user's own.
func TestSomeDemos(t *testing.T) {
	h := newHost(t)
	h.Run(t, program, "network", "create", "mine")
	before := traces(t, h)
	t.Setenv("BERTH_ROOT", "/nowhere")
	t.Setenv("BERTH_CONFIG", "/nowhere")
	out := h.Run(t, program, "demo", "4", "1.5")
	allMet(t, out)
	for _, name := range []string{"0", "1", "1.5", "2", "3", "4"} {
		if want := name == "4" || name == "1.5"; strings.Contains(out, "Demo "+name+":") != want {
			t.Errorf("demo %s was played: %v, want %v", name, !want, want)
		}
	}
	if after := traces(t, h); after != before {
		t.Errorf("the demo changed the host:\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// TestNoContainers plays where there is no monitor.
func TestNoContainers(t *testing.T) {
	conmon, err := exec.LookPath("conmon")
	if err != nil {
		t.Skip("no conmon")
	}
	h := newHost(t)
	h.Run(t, "mount", "--bind", "/dev/null", conmon)
	out := h.Run(t, program, "demo")
	if n := allMet(t, out); n != withSandboxes {
		t.Errorf("%d expectations, want %d:\n%s", n, withSandboxes, out)
	}
	const why = "\nContainers are left out: no conmon: install the package conmon.\n"
	if strings.Count(out, why) != 1 || strings.Contains(out, "berth run") {
		t.Errorf("want once %q and no container:\n%s", why, out)
	}
}

// TestUser plays as somebody without rights.
func TestUser(t *testing.T) {
	h := newHost(t)
	if out, err := h.Try("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urnm", "mount", "-t", "tmpfs", "none", "/run"); err != nil {
		t.Skipf("this machine lets users make no namespaces: %s", out)
	}
	out := h.Run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "demo")
	if n := allMet(t, out); n != withSandboxes || strings.Count(out, "\nContainers are left out: root is needed") != 1 {
		t.Errorf("%d expectations, want %d, and once that containers are left out:\n%s", n, withSandboxes, out)
	}
}

// TestRefused is told in one line where nothing is allowed.
func TestRefused(t *testing.T) {
	h := newHost(t)
	out, err := h.Try("unshare", "-Ur", "sh", "-c", "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --bounding-set=-all "+program+" demo")
	want := "berth: demo: on this machine only root may make a private host: run it with sudo\n"
	if err == nil || out != want {
		t.Errorf("err %v, output\n%s\nwant\n%s", err, out, want)
	}
}

// TestInside looks that the flag that makes a host of the process's namespaces
// does not do so to those of the user.
func TestInside(t *testing.T) {
	h := newHost(t)
	before := traces(t, h)
	own := strings.Fields(h.Run(t, "readlink", "/proc/self/ns/net", "/proc/self/ns/mnt"))
	for _, flag := range []string{"x", own[0], own[1], own[0] + "," + own[1]} {
		if out, err := h.Try(program, "demo", "--inside="+flag); err == nil {
			t.Errorf("--inside=%s is accepted: %s", flag, out)
		}
	}
	if after := traces(t, h); after != before {
		t.Errorf("the flag changed the host:\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// A player plays a demo step by step.
type player struct {
	t     *testing.T
	h     *nettest.Host
	cmd   *exec.Cmd
	enter io.Writer
	out   io.Reader
	err   bytes.Buffer
	heard []byte // all of the output so far
	read  int    // how much of it the test has seen
}

func play(t *testing.T, args ...string) *player {
	t.Helper()
	h := newHost(t)
	p := &player{t: t, h: h, cmd: h.Command(program, append([]string{"demo", "--step"}, args...)...)}
	p.cmd.Stderr = &p.err
	var err error
	if p.enter, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill() // it may have ended
		p.cmd.Wait()         // its exit says nothing
	})
	return p
}

// until goes on, step by step, until a step is waiting.
func (p *player) until(step string) {
	p.t.Helper()
	for b := make([]byte, 4096); ; {
		new := p.heard[p.read:]
		switch line := new[bytes.LastIndexByte(new, '\n')+1:]; {
		case string(line) == step:
			p.read = len(p.heard)
			return
		case bytes.Contains(line, []byte("$ ")):
			p.read = len(p.heard)
			p.next()
		}
		n, err := p.out.Read(b)
		if err != nil {
			p.t.Fatalf("no step %q: %v:\n%s%s", step, err, p.heard, &p.err)
		}
		p.heard = append(p.heard, b[:n]...)
	}
}

func (p *player) next() {
	p.t.Helper()
	if _, err := io.WriteString(p.enter, "\n"); err != nil {
		p.t.Fatal(err)
	}
}

// children are the child processes of a process.
func children(t *testing.T, pid int) (all []int) {
	t.Helper()
	// A process is the child of a thread.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		out, _ := os.ReadFile(task) // a thread may have ended
		for f := range strings.FieldsSeq(string(out)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, child)
		}
	}
	return all
}

// inner are the processes below the demo's first: the first of its pid
// namespace, where it has one, and last the one inside the private host. nsenter
// has become the demo.
func (p *player) inner() (all []int) {
	p.t.Helper()
	for below := []int{p.cmd.Process.Pid}; ; {
		pid := below[0]
		below = slices.DeleteFunc(children(p.t, pid), func(pid int) bool {
			words, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			return err != nil || !bytes.Contains(words, []byte("\x00--inside="))
		})
		if len(below) == 0 {
			break
		}
		all = append(all, below[0])
	}
	if len(all) == 0 {
		p.t.Fatal("there is no process inside")
	}
	return all
}

// within runs a command in a namespace of the private host.
func (p *player) within(ns string, args ...string) {
	p.t.Helper()
	enter := []string{"-t", strconv.Itoa(p.inner()[len(p.inner())-1]), "-n", "-m", "ip", "netns", "exec", ns}
	if out, err := exec.Command("nsenter", append(enter, args...)...).CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// TestBroken breaks one expectation, from outside.
func TestBroken(t *testing.T) {
	p := play(t, "1")
	p.until("ns1$ ping 10.0.0.2")
	p.within("ns1", "ip", "route", "add", "prohibit", "10.0.0.2")
	p.next()
	p.until("$ berth network connect --ip 10.0.0.1 link1 ns1")
	p.within("ns1", "ip", "route", "del", "prohibit", "10.0.0.2")
	p.next()
	p.until("$ berth network rm link1")
	p.next()
	rest, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Wait() // the exit status is asked for below
	want := "\n1 of 6 expectations failed:\n  demo 1: the host is not reachable yet (permission denied)\n"
	if p.cmd.ProcessState.ExitCode() != 1 || !strings.HasSuffix(string(rest), want) || p.err.Len() > 0 {
		t.Errorf("%v; output:\n%s%s%s\nwant status 1 and at its end\n%s", p.cmd.ProcessState, p.heard, rest, &p.err, want)
	}
}

// TestEnds ends a demo half way, and looks that it takes everything with it.
func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		signal     os.Signal
		first      bool // to the first process inside
		demo, step string
	}{
		{os.Interrupt, false, "1", "ns1$ nc -l 8080"},
		{os.Kill, false, "1", "ns1$ nc -l 8080"},
		{os.Interrupt, false, "4", "$ berth stop nginx"},
		{os.Kill, false, "4", "$ berth stop nginx"},
		{os.Kill, true, "4", "$ berth stop nginx"},
	} {
		t.Run(fmt.Sprintf("%v,first=%v,demo=%s", tt.signal, tt.first, tt.demo), func(t *testing.T) {
			if tt.demo == "4" && !containers() {
				t.Skip("no runtime or no conmon")
			}
			p := play(t, tt.demo)
			p.until(tt.step)
			before := traces(t, p.h)
			inner := p.inner()
			first, err := unix.PidfdOpen(inner[0], 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(first)
			to := p.cmd.Process
			if tt.first {
				if to, err = os.FindProcess(inner[0]); err != nil {
					t.Fatal(err)
				}
			}
			if err := to.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			p.cmd.Wait() // its status is asked for below
			const deadline = 20 * time.Second
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(first), Events: unix.POLLIN}}, int(deadline.Milliseconds())); n != 1 {
				t.Errorf("the inner process lives on: %v", err)
			}
			if after := traces(t, p.h); after != before {
				t.Errorf("something is left:\nbefore:\n%s\nafter:\n%s", before, after)
			}
			noGroups(t, p.cmd.Process.Pid)
			if tt.signal == os.Interrupt && (p.cmd.ProcessState.ExitCode() != 1 || p.err.String() != "berth: demo: interrupted\n") {
				t.Errorf("%v: %s", p.cmd.ProcessState, &p.err)
			}
		})
	}
}
