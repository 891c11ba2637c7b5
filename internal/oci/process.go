package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
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
	// Three system calls; os.ReadFile makes ten, and "ps" looks at a thousand.
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/stat", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	b := make([]byte, 1024) // 52 numbers and a name of 64 bytes at most
	n, err := unix.Read(fd, b)
	if err != nil {
		return 0, err
	}
	b = b[:n]
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

// ShuttingDown reports whether this host's systemd ends what still runs.
// Containers and monitors are in cgroups of no unit: what ends them is the
// SIGTERM to all processes of systemd-shutdown(8), which pid 1 has become by
// then. It waits until they have ended, and for one that was started after its
// signal until it loses patience.
func ShuttingDown() bool {
	name, _ := os.ReadFile("/proc/1/comm")     // there is one as long as there is a /proc
	return string(name) == "systemd-shutdow\n" // 15 bytes, proc(5)
}

// Signal sends a process a signal. One that has ended is no error.
func Signal(p berth.Running, signal syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err == nil {
		defer unix.Close(fd)
		if !Alive(p) { // the pid is another's by now
			return nil
		}
		err = unix.PidfdSendSignal(fd, signal, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// Await waits until a process has ended, at most for a time; a negative one is
// for ever.
func Await(ctx context.Context, p berth.Running, wait time.Duration) (ended bool, err error) {
	if !Alive(p) {
		return true, nil
	}
	fd, err := unix.PidfdOpen(p.Pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("pidfd_open", err)
	}
	// As a file of Go's it is waited for with all others: a system call that
	// waits keeps the one processor from the rest of the program for up to 10 ms.
	file := os.NewFile(uintptr(fd), "pidfd")
	defer file.Close()
	if !Alive(p) { // the pid was another's by then
		return true, nil
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return false, err
	}
	if wait >= 0 {
		file.SetReadDeadline(time.Now().Add(wait))
	}
	defer context.AfterFunc(ctx, func() { file.SetReadDeadline(time.Now()) })()
	err = raw.Read(func(uintptr) bool {
		var n int
		n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ended = n > 0
		return ended
	})
	switch {
	case ended:
		return true, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, ctx.Err()
	}
	return false, fmt.Errorf("wait for process %d: %w", p.Pid, err)
}
