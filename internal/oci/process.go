package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth"
)

// Identify tells a process from later ones of the same pid.
func Identify(pid int) berth.Running {
	since, _ := since(pid) // a process that has ended is no process
	return berth.Running{Pid: pid, Since: since}
}

// since is the start of a process, field 22 of proc(5)'s stat: behind the name,
// which is in brackets and may hold anything.
func since(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// Alive reports whether a process is there, and is the one that was recorded.
func Alive(p berth.Running) bool {
	if p.Pid == 0 || p.Since == 0 {
		return false
	}
	s, err := since(p.Pid)
	return err == nil && s == p.Since
}

// Await waits until a process has ended, at most for a time; a negative one is
// for ever.
func Await(ctx context.Context, p berth.Running, wait time.Duration) (ended bool, err error) {
	if !Alive(p) {
		return true, nil
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if !Alive(p) { // the pid was another's by then
		return true, nil
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return false, os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(wake)
	stop := context.AfterFunc(ctx, func() { unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()
	deadline := time.Now().Add(wait)
	for {
		timeout := -1
		if wait >= 0 {
			timeout = int(max(0, time.Until(deadline).Milliseconds()))
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, os.NewSyscallError("poll", err)
		case fds[0].Revents != 0:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case n == 0:
			return false, nil
		}
	}
}

// AwaitExit waits until a monitor has written a container's exit status.
func AwaitExit(ctx context.Context, exitDir, id string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, exitDir, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		if _, err := ExitCode(exitDir, id); err == nil {
			return nil
		}
		if _, err := events.Read(buf); err != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
}
