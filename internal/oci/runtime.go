package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth"
)

// A Runtime is an OCI runtime's program.
type Runtime struct {
	Path string // /usr/bin/crun
	Root string // directory of its own records
}

// FindRuntime returns the runtime of a name or path; with "", the one that
// suits the host: crun where there is only cgroup v2 (crun 1.8 refuses
// controllers of the hybrid hierarchy), else runc, else the other.
func FindRuntime(name, root string, unified bool) (Runtime, error) {
	names := []string{name}
	if name == "" {
		names = []string{"runc", "crun"}
		if unified {
			names = []string{"crun", "runc"}
		}
	}
	for _, n := range names {
		if path, err := look(n); err == nil {
			return Runtime{Path: path, Root: root}, nil
		}
	}
	return Runtime{}, fmt.Errorf("no OCI runtime (%s): install the package %s: %w", strings.Join(names, ", "), names[0], berth.ErrUnsupported)
}

// look finds a program, also where root's PATH does not lead.
func look(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil || strings.Contains(name, "/") {
		return path, err
	}
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/libexec/podman", "/usr/lib/podman"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// Name is crun, runc, ….
func (r Runtime) Name() string { return filepath.Base(r.Path) }

// Start lets a created container's process begin.
func (r Runtime) Start(ctx context.Context, id string) error { return r.run(ctx, nil, "start", id) }

// Delete takes a container out of the kernel, dead or alive. One that is not
// there is no error.
func (r Runtime) Delete(ctx context.Context, id string) error {
	err := r.run(ctx, nil, "delete", "--force", id)
	if err != nil && !r.Knows(id) {
		return nil
	}
	return err
}

// Knows reports whether the runtime has a record of a container.
func (r Runtime) Knows(id string) bool {
	_, err := os.Lstat(filepath.Join(r.Root, id))
	return err == nil
}

// Pause stops all processes of a container where they are.
func (r Runtime) Pause(ctx context.Context, id string) error { return r.run(ctx, nil, "pause", id) }

// Resume lets them go on.
func (r Runtime) Resume(ctx context.Context, id string) error { return r.run(ctx, nil, "resume", id) }

// Update changes a container's limits; resources is the JSON of the runtime
// spec's LinuxResources.
func (r Runtime) Update(ctx context.Context, id string, resources []byte) error {
	return r.run(ctx, bytes.NewReader(resources), "update", "--resources", "-", id)
}

// A Refusal is why a runtime did not run a process. It has written it to its
// standard error too.
type Refusal struct{ Why string }

func (e *Refusal) Error() string { return e.Why }

// Exec runs one more process in a container and returns its exit status, or 0 at
// once if it is detached; spec is a file with the runtime spec's Process. One that
// could not be run is a [Refusal].
func (r Runtime) Exec(id, spec string, detach bool, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	// The runtime's exit status may be the process's; what is logged is its own.
	log := spec + ".log"
	defer os.Remove(log)
	args := []string{"--log", log, "--log-format", "json", "exec", "--process", spec}
	if detach {
		args = append(args, "--detach")
	}
	cmd := exec.Command(r.Path, r.with(append(args, id)...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	err := cmd.Run()
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		return 0, err
	}
	if said, _ := os.ReadFile(log); len(said) > 0 { // none was made for want of anything to say
		return 0, &Refusal{complaint(string(said))}
	}
	return ended.ExitCode(), nil
}

// with puts what every call has before its arguments.
func (r Runtime) with(args ...string) []string { return append([]string{"--root", r.Root}, args...) }

func (r Runtime) run(ctx context.Context, stdin io.Reader, args ...string) error {
	cmd := exec.CommandContext(ctx, r.Path, r.with(args...)...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, io.Discard, &out
	if err := cmd.Run(); err != nil {
		if why := complaint(out.String()); why != "" {
			return fmt.Errorf("%s %s: %s", r.Name(), args[0], why)
		}
		return fmt.Errorf("%s %s: %w", r.Name(), args[0], err)
	}
	return nil
}

var message = regexp.MustCompile(`msg="((?:[^"\\]|\\.)*)"`)

// complaint is the last line that a program wrote to its standard error, without
// the dress of a log.
func complaint(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	var entry struct{ Msg string }
	if json.Unmarshal([]byte(last), &entry) == nil && entry.Msg != "" {
		return entry.Msg
	}
	if m := message.FindStringSubmatch(last); m != nil {
		if s, err := strconv.Unquote(`"` + m[1] + `"`); err == nil {
			return s
		}
	}
	return last
}

// A Monitor is the program conmon.
type Monitor struct{ Path string }

// FindMonitor returns conmon.
func FindMonitor() (Monitor, error) {
	path, err := look("conmon")
	if err != nil {
		return Monitor{}, fmt.Errorf("no conmon: install the package conmon: %w", berth.ErrUnsupported)
	}
	return Monitor{path}, nil
}

// A Watch is how a monitor watches a container.
type Watch struct {
	ID      string
	Bundle  string // directory with config.json; the attach socket and pid files come here
	Runtime Runtime

	Log        string // path
	LogMaxSize int64  // bytes
	ExitDir    string // the exit status is written there, to a file named ID
	// OnExit is the command that the monitor runs when all is over.
	OnExit   []string
	Terminal bool
	Stdin    bool // there is a standard input
	// KeepStdin leaves it open when whoever is attached leaves: conmon closes it
	// with its first client otherwise, which is how that client's end is told.
	KeepStdin bool
	// Place is called with the monitor's pid while the runtime makes the
	// container, to put it into a cgroup: the kernel takes a grace period for it,
	// 10 ms. Nil: it stays in the caller's.
	Place func(pid int) error
}

// MonitorPid is the file with the pid of a bundle's monitor.
func MonitorPid(bundle string) string { return filepath.Join(bundle, "monitor.pid") }

// Create makes a container that is ready to be started, with its monitor, and
// returns the pids of both. If it fails nothing is left but the files in the
// bundle.
func (m Monitor) Create(ctx context.Context, w Watch) (pid, monitor int, err error) {
	args := []string{
		"--cid", w.ID, "--name", w.ID, "--cuuid", w.ID, "--runtime", w.Runtime.Path, "--runtime-arg", "--root=" + w.Runtime.Root,
		"--bundle", w.Bundle, "--container-pidfile", filepath.Join(w.Bundle, "pid"), "--conmon-pidfile", MonitorPid(w.Bundle),
		"--log-path", "k8s-file:" + w.Log, "--log-level", "error", "--exit-dir", w.ExitDir, "--socket-dir-path", w.Bundle,
	}
	if w.LogMaxSize > 0 {
		args = append(args, "--log-size-max", strconv.FormatInt(w.LogMaxSize, 10))
	}
	if w.Terminal {
		args = append(args, "--terminal")
	}
	if w.Stdin {
		args = append(args, "--stdin")
		if w.KeepStdin {
			args = append(args, "--leave-stdin-open")
		}
	}
	if len(w.OnExit) > 0 {
		args = append(args, "--exit-command", w.OnExit[0])
		for _, a := range w.OnExit[1:] {
			args = append(args, "--exit-command-arg", a)
		}
	}
	return m.launch(ctx, w, exec.CommandContext(ctx, m.Path, args...))
}

// launch starts conmon, and waits for what it says of the container.
func (m Monitor) launch(ctx context.Context, w Watch, cmd *exec.Cmd) (pid, monitor int, err error) {
	told, tell, err := os.Pipe()
	if err != nil {
		return 0, 0, err
	}
	defer told.Close()
	begin, begun, err := os.Pipe()
	if err != nil {
		tell.Close()
		return 0, 0, err
	}
	var stderr bytes.Buffer
	cmd.ExtraFiles, cmd.Stderr = []*os.File{tell, begin}, &stderr
	cmd.Env = append(os.Environ(), "_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's signals are not for it
	// It writes a file "oom" where it works when the kernel ended a process
	// (conmon 2.1.6), and it would hold the caller's directory.
	cmd.Dir = w.Bundle
	cmd.WaitDelay = time.Second // should what conmon leaves behind hold its standard error
	err = cmd.Start()
	tell.Close()
	begin.Close()
	if err != nil {
		begun.Close()
		return 0, 0, err
	}
	_, err = begun.Write([]byte{0})
	begun.Close()
	first, placed := Identify(cmd.Process.Pid), make(chan error, 1)
	go func() { placed <- w.place(ctx, first) }()
	var say struct {
		Pid     int    `json:"pid"`
		Message string `json:"message"`
	}
	heard := json.NewDecoder(told).Decode(&say)
	if ended := cmd.Wait(); !errors.Is(ended, exec.ErrWaitDelay) {
		err = errors.Join(err, ended)
	}
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("conmon: %s: %w", complaint(stderr.String()), err)
	case heard != nil:
		why := complaint(stderr.String())
		if why == "" {
			why = w.Runtime.Path + " did not make it"
		}
		return 0, 0, fmt.Errorf("conmon ended before the container was made: %s", why)
	case say.Pid <= 0:
		return 0, 0, fmt.Errorf("%s: %s", w.Runtime.Name(), complaint(say.Message))
	}
	if err := <-placed; err != nil {
		return 0, 0, errors.Join(err, w.Runtime.Delete(context.Background(), w.ID))
	}
	monitor, err = readPid(MonitorPid(w.Bundle))
	return say.Pid, monitor, err
}

// place puts the monitor into its cgroup. What was started leaves a process
// behind that goes on, and ends when it has written its pid.
func (w Watch) place(ctx context.Context, first berth.Running) error {
	if w.Place == nil {
		return nil
	}
	if _, err := Await(ctx, first, -1); err != nil {
		return err
	}
	pid, err := readPid(MonitorPid(w.Bundle))
	if err != nil {
		return err
	}
	return w.Place(pid)
}

func readPid(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// ExitCode returns the exit status that a monitor wrote for a container; its
// error matches [os.ErrNotExist] if it has not ended.
func ExitCode(exitDir, id string) (int, error) {
	b, err := os.ReadFile(filepath.Join(exitDir, id))
	if err != nil {
		return 0, err
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read the exit status of %s: %w", id, err)
	}
	return code, nil
}

// ParseSignal reads a signal by name, with or without SIG, or by number.
func ParseSignal(s string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	n, err := strconv.ParseUint(name, 10, 8)
	switch {
	case err == nil && name == s && n >= 1 && n <= 64:
		return syscall.Signal(n), nil
	case unix.SignalNum("SIG"+name) != 0:
		return unix.SignalNum("SIG" + name), nil
	}
	// glibc's: it keeps two real-time signals to itself.
	const rtmin, rtmax = 34, 64
	for prefix, base := range map[string]int{"RTMIN": rtmin, "RTMAX": rtmax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		add, err := 0, error(nil)
		if rest != "" {
			add, err = strconv.Atoi(rest)
		}
		if n := base + add; err == nil && n >= rtmin && n <= rtmax {
			return syscall.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("no signal %q: %w", s, berth.ErrInvalid)
}
