package oci

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A box is a container of a real monitor and a real runtime.
type box struct {
	Watch
	pid, monitor int
	ended        chan struct{} // closed when the monitor has
}

// newBox makes a container that runs a shell script, and does not start it. set
// changes how it is watched.
func newBox(t *testing.T, script string, set func(*Watch)) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to run containers")
	}
	monitor, err := FindMonitor()
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	// The runtime that suits the machine: crun takes no hybrid hierarchy.
	_, bad := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	runtime, err := FindRuntime("", filepath.Join(dir, "runtime"), bad == nil)
	if err != nil {
		t.Skip(err)
	}
	id := "berthtest" + strings.ToLower(rand.Text()[:12])
	b := &box{Watch: Watch{
		ID: id, Bundle: filepath.Join(dir, "bundle"), Runtime: runtime, Log: filepath.Join(dir, "log"),
		ExitDir: filepath.Join(dir, "exits"),
	}, ended: make(chan struct{})}
	if set != nil {
		set(&b.Watch)
	}
	for _, d := range []string{b.Bundle, b.ExitDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	writeBundle(t, b.Watch, script)
	if err := MakeLog(b.Log, b.LogMaxSize); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if b.pid, b.monitor, err = monitor.Create(ctx, b.Watch); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(b.ended)
		waitPid(b.monitor)
	}()
	t.Cleanup(func() { b.remove(t) })
	return b
}

// remove ends all of the container.
func (b *box) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.Runtime.Delete(ctx, b.ID); err != nil {
		t.Errorf("delete the container: %v", err)
	}
	select {
	case <-b.ended:
	case <-ctx.Done():
		t.Errorf("the monitor does not end")
		unix.Kill(b.monitor, unix.SIGKILL)
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*/" + b.ID)
	for _, d := range left {
		os.Remove(d)
	}
}

func (b *box) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := b.Runtime.Begin(ctx, b.ID, Identify(b.pid)); err != nil {
		t.Fatal(err)
	}
}

// running reports whether the container's process is there.
func (b *box) running() bool { return unix.Kill(b.pid, 0) == nil }

// exit waits for the end of the monitor, and returns the container's exit code.
func (b *box) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-b.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the container does not end")
	}
	code, err := ExitCode(b.ExitDir, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// waitPid waits until a process that need not be a child has ended.
func waitPid(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has
	}
	defer unix.Close(fd)
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// writeBundle makes a bundle whose root is a busybox, which is sh, and stty, and
// all else.
func writeBundle(t *testing.T, w Watch, script string) {
	t.Helper()
	const busybox = "/bin/busybox"
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Skipf("needs the package busybox-static: %v", err)
	}
	for _, d := range []string{"bin", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(w.Bundle, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(w.Bundle, "rootfs", busybox), b, 0o755); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	var namespaces []object
	for _, n := range []string{"pid", "ipc", "uts", "mount", "network"} {
		namespaces = append(namespaces, object{"type": n})
	}
	config, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"root":       object{"path": "rootfs"},
		"process": object{
			"terminal": w.Terminal, "cwd": "/", "args": []string{busybox, "sh", "-c", script},
			"env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0},
		},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
		},
		"linux": object{"namespaces": namespaces, "cgroupsPath": "/" + w.ID},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.Bundle, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
}

// attach connects to a box, starts it, and copies.
func (b *box) attach(t *testing.T, s Streams, o AttachOptions) <-chan copied {
	t.Helper()
	c, err := Connect(b.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	done := startCopy(t.Context(), c, s, o)
	b.start(t)
	return done
}

// numbers is what seq writes.
func numbers(first, last int) string {
	var b strings.Builder
	for i := first; i <= last; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

func TestContainerOutput(t *testing.T) {
	const last = 160_000 // 1 MB
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal=%v", terminal), func(t *testing.T) {
			b := newBox(t, fmt.Sprintf("busybox seq %d; busybox seq 5 >&2; exit 3", last), func(w *Watch) { w.Terminal = terminal })
			var out, errs bytes.Buffer
			r := waitCopy(t, b.attach(t, Streams{Stdout: &out, Stderr: &errs}, AttachOptions{Terminal: terminal, Ended: b.ended}))
			if r != (copied{}) {
				t.Errorf("%+v", r)
			}
			if code := b.exit(t); code != 3 {
				t.Errorf("exit code %d, want 3", code)
			}
			want, wantErrs := numbers(1, last), numbers(1, 5)
			var log, logErrs bytes.Buffer
			if err := Logs(t.Context(), b.Log, LogOptions{Tail: -1}, nil, &log, &logErrs); err != nil {
				t.Error(err)
			}
			if terminal {
				want, wantErrs = strings.ReplaceAll(want+wantErrs, "\n", "\r\n"), ""
			}
			for _, g := range []struct{ what, got, want string }{
				{"output", out.String(), want}, {"errors", errs.String(), wantErrs},
				{"logged output", log.String(), want}, {"logged errors", logErrs.String(), wantErrs},
			} {
				if g.got != g.want {
					t.Errorf("%s: %d bytes, want %d: the first difference is at %d", g.what, len(g.got), len(g.want), differ(g.got, g.want))
				}
			}
		})
	}
}

// differ is where two strings differ.
func differ(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestContainerThatEndsAtOnce: nothing is lost of one that ends in the same
// millisecond, and its exit command, which inherits the connection, does not
// keep the attached waiting.
func TestContainerThatEndsAtOnce(t *testing.T) {
	for i := range 12 {
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		hold, err := os.OpenFile(fifo, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		terminal := i%2 == 1
		b := newBox(t, "echo hello", func(w *Watch) {
			w.Terminal = terminal
			w.OnExit = []string{"/bin/busybox", "head", "-n1", fifo} // runs until it is told
		})
		var out bytes.Buffer
		r := waitCopy(t, b.attach(t, Streams{Stdout: &out, Stderr: &out}, AttachOptions{Terminal: terminal}))
		if got := strings.ReplaceAll(out.String(), "\r", ""); got != "hello\n" || r != (copied{}) {
			t.Errorf("%d: got %q, %+v", i, got, r)
		}
		select {
		case <-b.ended:
			t.Error("the monitor did not wait for its exit command")
		default:
		}
		fmt.Fprintln(hold, "go on")
		b.exit(t)
		hold.Close()
	}
}

// TestMonitorWorksInItsBundle: conmon leaves files where it works.
func TestMonitorWorksInItsBundle(t *testing.T) {
	b := newBox(t, "read line", nil)
	if at, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", b.monitor)); err != nil || at != b.Bundle {
		t.Errorf("the monitor works in %s, want %s: %v", at, b.Bundle, err)
	}
	b.start(t)
	b.exit(t)
}

// TestContainerInput: what is written is read, and its end is the end.
func TestContainerInput(t *testing.T) {
	b := newBox(t, "busybox sort -n | busybox md5sum", func(w *Watch) { w.Stdin = true })
	var out bytes.Buffer
	r := waitCopy(t, b.attach(t, Streams{Stdin: strings.NewReader(numbers(1, 100_000)), Stdout: &out, Stderr: &out}, AttachOptions{}))
	// md5sum of seq 100000
	if want := "dea9193b768319cbb4ff1a137ac03113  -\n"; out.String() != want || r != (copied{}) {
		t.Errorf("got %q, %+v", out.String(), r)
	}
	if code := b.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestContainerTerminal(t *testing.T) {
	// What is typed interrupts a child: a trap of this shell waits for the next
	// line if the signal comes between its look for signals and its read.
	b := newBox(t, `trap : INT
		busybox sh -c "echo ready; exec busybox sleep 1000"
		echo "ended with $?"
		while read -r line; do busybox stty size; echo "got $line"; done`,
		func(w *Watch) { w.Terminal, w.Stdin = true, true })
	p := newPty(t, 31, 101)
	was := p.settings(t)
	keys, err := ParseDetachKeys("")
	if err != nil {
		t.Fatal(err)
	}
	o := AttachOptions{Terminal: true, DetachKeys: keys, Ended: b.ended}
	done := b.attach(t, Streams{Stdin: p.terminal, Stdout: p.terminal}, o)
	p.screen.wait(t, "ready\r\n")
	p.press(t, "\x03")
	p.screen.wait(t, "ended with 130\r\n")
	p.resize(t, 44, 122)
	unix.Kill(os.Getpid(), unix.SIGWINCH)
	for i := 0; !strings.Contains(p.screen.String(), "44 122\r\n"); i++ {
		if i == 1000 {
			t.Fatalf("the new size does not come: %q", p.screen.String())
		}
		p.press(t, fmt.Sprintf("hello %d\r", i))
		p.screen.wait(t, fmt.Sprintf("got hello %d\r\n", i))
	}
	p.press(t, "\x10\x11")
	if r := waitCopy(t, done); r != (copied{detached: true}) {
		t.Errorf("%+v", r)
	}
	if now := p.settings(t); now != was {
		t.Errorf("the terminal is not as it was: %+v, was %+v", now, was)
	}
	if !b.running() {
		t.Error("the detach keys have ended the container")
	}
}

// TestContainerTerminalSize: the size of the user's terminal is there from the
// start, without any change of it.
func TestContainerTerminalSize(t *testing.T) {
	b := newBox(t, `while [ "$(busybox stty size)" != "31 101" ]; do :; done; echo right`, func(w *Watch) { w.Terminal = true })
	p := newPty(t, 31, 101)
	done := b.attach(t, Streams{Stdin: p.terminal, Stdout: p.terminal}, AttachOptions{Terminal: true})
	p.screen.wait(t, "right\r\n")
	if r := waitCopy(t, done); r != (copied{}) {
		t.Errorf("%+v", r)
	}
}

// TestContainerLogIsCut: the monitor cuts the log, the reader says so, and a
// follower shows each line once and in order.
func TestContainerLogIsCut(t *testing.T) {
	const last, max = 20_000, 64 << 10 // about 1 MB with the heads: 16 files
	b := newBox(t, fmt.Sprintf("busybox seq %d", last), func(w *Watch) { w.LogMaxSize = max })
	out, errs, end := startFollow(t, b.Log, LogOptions{Tail: -1, Keeps: max})
	b.start(t)
	b.exit(t)
	if err := end(); err != nil {
		t.Error(err)
	}
	lines := strings.Fields(out.String())
	if !slices.IsSortedFunc(lines, compareNumbers) || len(slices.Compact(slices.Clone(lines))) != len(lines) {
		t.Error("lines are shown twice or not in order")
	}
	if len(lines) != last && !strings.Contains(errs.String(), "gone") {
		t.Errorf("%d lines of %d, and nothing is said: %q", len(lines), last, errs.String())
	}
	t.Logf("the follower saw %d of %d lines", len(lines), last)
	st, err := os.Stat(b.Log)
	if err != nil || st.Size() > max {
		t.Errorf("the log has %d bytes, %v, of at most %d", st.Size(), err, max)
	}
	var all, said bytes.Buffer
	if err := Logs(t.Context(), b.Log, LogOptions{Tail: -1, Keeps: max}, nil, &all, &said); err != nil {
		t.Error(err)
	}
	if said.String() != "older lines are gone: the log keeps 64 KiB\n" {
		t.Errorf("said %q", said.String())
	}
	first := 0
	fmt.Sscan(all.String(), &first)
	if all.String() != numbers(first, last) {
		t.Errorf("the log is not the end of the output: it begins at %d", first)
	}
}

func compareNumbers(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// TestContainerLogIsFollowed: what comes slowly is shown as it comes, also over
// a cut.
func TestContainerLogIsFollowed(t *testing.T) {
	b := newBox(t, `while read -r line; do echo "got $line"; done`, func(w *Watch) { w.Stdin, w.LogMaxSize = true, 1000 })
	in, keys, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, errs, end := startFollow(t, b.Log, LogOptions{Tail: -1, Timestamps: true})
	done := b.attach(t, Streams{Stdin: in, Stdout: io.Discard, Stderr: io.Discard}, AttachOptions{})
	for i := range 100 { // 5000 bytes: five files
		fmt.Fprintln(keys, i)
		out.wait(t, fmt.Sprintf(" got %d\n", i))
	}
	keys.Close()
	waitCopy(t, done)
	b.exit(t)
	if err := end(); err != nil || errs.String() != "" {
		t.Errorf("%v, said %q", err, errs.String())
	}
	form := regexp.MustCompile(`^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z got \d+\n){100}$`)
	if !form.MatchString(out.String()) {
		t.Errorf("got %q", out.String())
	}
	if files, _ := filepath.Glob(b.Log + "*"); len(files) != 1 {
		t.Errorf("files %q", files)
	}
}
