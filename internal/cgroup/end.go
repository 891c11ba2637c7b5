package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"berth"

	"golang.org/x/sys/unix"
)

// patience is how long Kill and Remove wait for processes to end: one in the
// middle of a disk's or a network disk's answer takes its time.
const patience = 5 * time.Second

// Kill ends all processes of the group and returns when they have ended. That
// there are none, or no group, is no error.
func (g Group) Kill() error {
	if err := g.own("kill"); err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		pids, err := g.Processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		if g.mode.Version == V2 {
			// One write ends all, those that fork too, and the frozen (Linux 5.14).
			err = write(g.dir(""), "cgroup.kill", "1")
			if gone(err) {
				err = nil
			}
		} else {
			err = g.killFrozen()
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
		if err := await(pids, deadline); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
	}
}

// killFrozen signals all processes while they are frozen, so that none forks
// away, and thaws them, for a frozen one of v1 does not die.
func (g Group) killFrozen() error {
	freezer := g.dir("freezer")
	if freezer != "" {
		if err := write(freezer, "freezer.state", "FROZEN"); err != nil && !gone(err) {
			return err
		}
		// A group below may be frozen by itself, and stays so with its parent
		// thawed.
		defer func() {
			for _, d := range below(freezer) {
				_ = write(d, "freezer.state", "THAWED") // gone with its processes
			}
		}()
	}
	pids, err := g.Processes()
	if err != nil {
		return err
	}
	for some := range slices.Chunk(pids, 256) { // 1024 open files is a usual limit
		if err := g.signal(some); err != nil {
			return err
		}
	}
	return nil
}

// signal kills pids of the group. They are opened and then listed again: one
// that was listed, has ended and was given to a stranger in between is not in
// the second list, and the pid of one that is there leads to no stranger.
func (g Group) signal(pids []int) error {
	open := map[int]int{}
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		open[pid] = fd
	}
	still, err := g.Processes()
	if err != nil {
		return err
	}
	for _, pid := range still {
		fd, ok := open[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// await returns when processes have ended. A pidfd becomes readable then.
func await(pids []int, deadline time.Time) error {
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		n, err := poll(fd, unix.POLLIN, time.Until(deadline))
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n == 0 {
			return fmt.Errorf("process %d does not end in %v (a disk it waits for?): %w", pid, patience, berth.ErrInUse)
		}
	}
	return nil
}

// poll waits for events of a file, at most that long. It returns 0 if none
// came.
func poll(fd int, events int16, most time.Duration) (int, error) {
	end := time.Now().Add(most)
	for {
		left := max(0, time.Until(end))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int((left+time.Millisecond-1)/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Remove removes the group and those below it from every hierarchy, and waits
// for processes that are about to end. That it is gone is no error. A group
// with processes that stay is an error that matches [berth.ErrInUse]; what
// hierarchies were without any is removed then.
func (g Group) Remove() error {
	return g.remove(time.Now().Add(patience))
}

func (g Group) remove(deadline time.Time) error {
	if err := g.own("remove"); err != nil {
		return err
	}
	var bad []error
	for _, d := range g.dirs() {
		if err := removeAll(d, deadline); err != nil {
			bad = append(bad, err)
		}
	}
	if bad == nil {
		return nil
	}
	if pids, _ := g.Processes(); len(pids) > 0 {
		return fmt.Errorf("remove cgroup %s: processes %s are in it: %w: kill them", g.path, strings.Trim(fmt.Sprint(pids), "[]"), berth.ErrInUse)
	}
	return fmt.Errorf("remove cgroup %s: %w", g.path, errors.Join(bad...))
}

// removeAll removes a directory and all below it. A process can make a group
// while it dies, so each try lists anew.
func removeAll(dir string, deadline time.Time) error {
	for {
		var busy error
		for _, d := range slices.Backward(below(dir)) {
			switch err := unix.Rmdir(d); {
			case err == nil, gone(err):
			case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOTEMPTY):
				busy = &os.PathError{Op: "rmdir", Path: d, Err: err}
			default:
				return &os.PathError{Op: "rmdir", Path: d, Err: err}
			}
		}
		if busy == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return busy
		}
		settle(dir, deadline)
	}
}

// settle waits until a v2 group has no processes, which the kernel tells, or a
// millisecond: v1 tells nothing, and an empty group can be busy for a moment
// while its last process is taken out.
func settle(dir string, deadline time.Time) {
	f, err := os.Open(path.Join(dir, "cgroup.events"))
	if err != nil {
		_, _ = poll(-1, 0, time.Millisecond)
		return
	}
	defer f.Close()
	if t, ok := table(dir, "cgroup.events"); ok && t["populated"] == 0 {
		_, _ = poll(-1, 0, time.Millisecond)
		return
	}
	_, _ = poll(int(f.Fd()), unix.POLLPRI, time.Until(deadline))
}

// Prune removes the group from every hierarchy where nothing is in it, process
// or group: /berth after the last container. The caller sees to it that no
// runtime makes a group there meanwhile.
func (g Group) Prune() error {
	if err := g.own("remove"); err != nil {
		return err
	}
	for _, d := range g.dirs() {
		err := unix.Rmdir(d)
		if err != nil && !gone(err) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove cgroup %s: %w", g.path, &os.PathError{Op: "rmdir", Path: d, Err: err})
		}
	}
	return nil
}
