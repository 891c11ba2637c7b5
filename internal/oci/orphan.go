package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth"
)

// EndMonitor ends the monitor of a bundle, and a runtime that is about to make
// its container, and returns when they have ended. They are told by their
// command lines: a process that was killed while it started them has told
// nobody who they are.
func EndMonitor(bundle string) error {
	for {
		found, err := ofBundle(bundle)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			if err := endProcess(p, bundle); err != nil {
				return fmt.Errorf("end process %d, which watches %s: %w", p.Pid, bundle, err)
			}
		}
	}
}

// ofBundle are the processes that were given a bundle: conmon and the runtime
// that it calls.
func ofBundle(bundle string) (found []berth.Running, err error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil && hasBundle(pid, bundle) {
			if p := Identify(pid); p.Since != 0 {
				found = append(found, p)
			}
		}
	}
	return found, nil
}

// hasBundle reports whether a process was started with --bundle.
func hasBundle(pid int, bundle string) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // one that has ended has none
	words := bytes.Split(line, []byte{0})
	i := slices.IndexFunc(words, func(w []byte) bool { return string(w) == "--bundle" })
	return i >= 0 && i+1 < len(words) && string(words[i+1]) == bundle
}

// endProcess kills a process and waits until it has ended. It is opened and
// then looked at again, so that no stranger with its pid is meant.
func endProcess(p berth.Running, bundle string) error {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if !Alive(p) || !hasBundle(p.Pid, bundle) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	ended, err := Await(context.Background(), p, 10*time.Second)
	if err == nil && !ended {
		err = fmt.Errorf("it does not end: %w", berth.ErrInUse)
	}
	return err
}

// AwaitBundle waits until a container's first process has ended and its bundle has
// been taken away, or its monitor is dead; at most for a time, and a negative one
// is for ever. A monitor that is done lives some 15 ms longer: it waits for a
// process that the kernel lets go late. To be told of the bundle takes as long
// (closing an inotify waits for a grace period), so it is looked at.
func AwaitBundle(ctx context.Context, bundle string, first, monitor berth.Running, wait time.Duration) (bool, error) {
	begin := time.Now()
	if ended, err := Await(ctx, first, wait); err != nil || !ended {
		return false, err
	}
	for ended := time.Now(); ; {
		if _, err := os.Lstat(bundle); errors.Is(err, os.ErrNotExist) || !Alive(monitor) {
			return true, nil
		}
		if wait >= 0 && time.Since(begin) > wait {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(min(200*time.Microsecond+time.Since(ended)/16, 50*time.Millisecond)):
		}
	}
}

// A Vigil is that this process waits to start a container again. It ends with
// the process, and is called off when the bundle is taken away.
type Vigil struct{ events *os.File }

// vigilFile says in a bundle who waits.
const vigilFile = "restart"

// KeepVigil begins one in a bundle that it makes.
func KeepVigil(bundle string) (*Vigil, error) {
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	v := &Vigil{os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, bundle, unix.IN_DELETE); err != nil {
		v.End()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	self := Identify(os.Getpid())
	if err := os.WriteFile(filepath.Join(bundle, vigilFile), fmt.Appendln(nil, self.Pid, self.Since), 0o600); err != nil {
		v.End()
		return nil, err
	}
	return v, nil
}

// Wait waits until a time. It is off if the bundle was taken away meanwhile.
func (v *Vigil) Wait(ctx context.Context, until time.Time) (off bool, err error) {
	v.events.SetReadDeadline(until)
	stop := context.AfterFunc(ctx, func() { v.events.SetReadDeadline(past) })
	defer stop()
	_, err = v.events.Read(make([]byte, 4<<10))
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	}
	return false, err
}

// End ends it.
func (v *Vigil) End() { v.events.Close() }

// Keeper is who keeps vigil in a bundle; nobody, if it has ended.
func Keeper(bundle string) (p berth.Running) {
	b, err := os.ReadFile(filepath.Join(bundle, vigilFile))
	if err != nil {
		return berth.Running{}
	}
	if _, err := fmt.Sscan(string(b), &p.Pid, &p.Since); err != nil || !Alive(p) {
		return berth.Running{}
	}
	return p
}
