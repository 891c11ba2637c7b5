package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/oci"
)

// lacking says in one line what containers lack on this host; "" is nothing.
func lacking() string {
	mode, err := cgroup.Detect()
	if err != nil {
		return err.Error()
	}
	_, err1 := oci.FindRuntime(os.Getenv("BERTH_RUNTIME"), "", mode.Version == cgroup.V2)
	_, err2 := oci.FindMonitor()
	var why []string
	for _, err := range []error{err1, err2} {
		if err != nil { // what brings it is said, and enough
			why = append(why, strings.TrimSuffix(err.Error(), ": "+berth.ErrUnsupported.Error()))
		}
	}
	return strings.Join(why, "; ")
}

// apart plays in a pid namespace and a control group of the demo's own as well:
// containers and their monitors do not end with the process that started them,
// but with the first one of their pid namespace.
func apart(ctx context.Context, args []string, o options) error {
	o.first, o.group = true, fmt.Sprintf("/berth-demo-%d", os.Getpid())
	// The first process is not killed with this one, as others are: it has a
	// control group to remove. It sees the end of the pipe instead.
	alive, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	defer alive.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", o.words(args)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, []*os.File{alive}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	cmd.Cancel = func() error { return end.Close() }
	err = cmd.Run()
	// It has done this, unless it was killed.
	return errors.Join(err, vanish(o.group))
}

// vanish removes the demo's control group with all that is below it.
func vanish(group string) error {
	mode, err := cgroup.Detect()
	if err != nil {
		return err
	}
	err = mode.Group(group).Remove()
	if errors.Is(err, unix.EROFS) {
		return nil // nor could it be made there
	}
	return err
}

// first is the first process of a pid namespace. It starts the demo, and when
// that has ended, or who wanted it, it ends all that is left.
func first(ctx context.Context, args []string, o options) error {
	const pipe = 3 // of apart
	alive := os.NewFile(pipe, "pipe")
	if os.Getpid() != 1 || alive == nil {
		return errors.New("demo: --first is not for people")
	}
	unix.CloseOnExec(pipe)
	// A terminal that is closed tells all its processes. This one waits for the
	// end of the other, and cleans up.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGQUIT)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, alive) // until its other end is closed
		cancel()
	}()
	o.first = false
	cmd := private(context.WithoutCancel(ctx), o.words(args), false)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	stop := context.AfterFunc(ctx, endAll)
	status, err := reap(cmd.Process.Pid)
	stop()
	endAll()
	_, _ = reap(0) // there may be none
	if err := errors.Join(err, vanish(o.group)); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if status != 0 {
		return ErrFailed // it has said why
	}
	return nil
}

// endAll kills all processes of this pid namespace but this one.
func endAll() { _ = unix.Kill(-1, unix.SIGKILL) } // there may be none

// reap waits for children, born or given here, until that one has ended; for 0
// until there is none.
func reap(pid int) (status unix.WaitStatus, err error) {
	for {
		var s unix.WaitStatus
		switch got, err := unix.Wait4(-1, &s, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the demo: %w", err)
		case got == pid:
			return s, nil
		}
	}
}

// join moves this process into the demo's control group, which is the root of
// what it sees of control groups from then on, and starts it again: namespaces
// are a thread's. It returns only if it fails.
func join(o options, args []string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mode, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if err := mode.Group(o.group).Add(os.Getpid()); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	o.joined = true
	return unix.Exec("/proc/self/exe", append([]string{"berth"}, o.words(args)...), os.Environ())
}

// ownFiles is where the demo keeps what it shows to containers.
const ownFiles = "/run/demo"

// mountsForContainers are those of [mounts], with processes and control groups
// that are the demo's own.
func mountsForContainers(group string) error {
	const cgroups = "/sys/fs/cgroup"
	mode, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if mode.Version == cgroup.V2 {
		// A group has the controllers that the one above hands on. Best effort: a
		// limit that cannot be set is refused.
		for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
			_ = os.WriteFile(filepath.Join(cgroups, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, cgroups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("take the control groups along: %w", err)
	}
	defer unix.Close(tree)
	if err := mounts(); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, cgroups, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("take the control groups along: %w", err)
	}
	seen := map[string]bool{}
	for _, m := range mode.Mounts {
		if seen[m] {
			continue
		}
		seen[m] = true
		if err := unix.Mount(path.Join(m, group), m, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show the demo's control group at %s: %w", m, err)
		}
	}
	// On v2 a group with processes hands no controllers on.
	return mode.Group("/player").Add(os.Getpid())
}

// copyProgram puts this program where containers and their monitors find it,
// whatever the private mounts cover.
func copyProgram() (string, error) {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer from.Close()
	const to = ownFiles + "/berth"
	if err := os.MkdirAll(ownFiles, 0o755); err != nil {
		return "", err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, from)
	return to, errors.Join(err, f.Close())
}
