package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth"
)

// What runtimes do by a file or two is done here without them: to start one takes
// 5 ms.

// Begin is [Runtime.Start] for a container whose first process is known. With runc
// that process waits until somebody reads a fifo in its record, and the container
// counts as created while the fifo is there.
func (r Runtime) Begin(ctx context.Context, id string, first berth.Running) error {
	if r.Name() != "runc" {
		return r.Start(ctx, id)
	}
	path := filepath.Join(r.Root, id, "exec.fifo")
	fifo, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return r.Start(ctx, id) // it says why, or knows better
	}
	if err != nil {
		return err
	}
	defer fifo.Close()
	raw, err := fifo.SyscallConn()
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = Await(watching, first, -1) // whatever it says, there is nothing more to wait for
		fifo.SetReadDeadline(past)
	}()
	began := false
	take := func(fd uintptr) bool {
		// Without a writer, who is yet to come, a read would find the end.
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if n > 0 {
			n, _ = unix.Read(int(fd), make([]byte, 1))
			began = n == 1
		}
		return n > 0
	}
	if err = raw.Read(take); errors.Is(err, os.ErrDeadlineExceeded) {
		err = raw.Control(func(fd uintptr) { take(fd) }) // it may have begun and ended since
	}
	if !began {
		return errors.Join(errors.New("its first process ended before it began"), ctx.Err(), err)
	}
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Forget takes away what the runtime keeps of a container whose processes have
// ended and whose cgroup the caller removes. Of runc and crun that is a directory,
// and to call them for it takes 5 ms; another runtime may keep more and is called.
func (r Runtime) Forget(ctx context.Context, id string) error {
	switch r.Name() {
	case "runc", "crun":
		return os.RemoveAll(filepath.Join(r.Root, id))
	}
	return r.Delete(ctx, id)
}
