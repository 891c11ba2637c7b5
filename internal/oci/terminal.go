package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether a file is a terminal.
func IsTerminal(f *os.File) bool {
	return onFd(f, func(fd int) error {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	}) == nil
}

// TerminalSize returns the size of a terminal.
func TerminalSize(f *os.File) (rows, columns uint16, err error) {
	err = onFd(f, func(fd int) error {
		size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil {
			rows, columns = size.Row, size.Col
		}
		return err
	})
	return rows, columns, err
}

// rawTerminal makes a terminal hand over each byte as it is typed, ctrl-C too,
// and show what it is given as it is. undo puts it back as it was.
func rawTerminal(f *os.File) (undo func() error, err error) {
	var was unix.Termios
	err = onFd(f, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		was = *t
		t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS, t)
	})
	if err != nil {
		return nil, fmt.Errorf("set the terminal: %w", err)
	}
	return func() error {
		err := onFd(f, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, &was) })
		if err != nil && !errors.Is(err, unix.EIO) { // EIO: it was hung up, there is nothing to put back
			return fmt.Errorf("put the terminal back: %w", err)
		}
		return nil
	}, nil
}

// Resize sets the size of the terminal of the container whose bundle is dir. A
// container that has ended is no error: nobody looks at its terminal.
func Resize(dir string, rows, columns uint16) error {
	// Opening does not wait: a fifo that no conmon reads is ENXIO.
	f, err := os.OpenFile(filepath.Join(dir, "ctl"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		// conmon 2.1.6 refuses more than 1000, and shares one buffer between all
		// commands that a refused one stays in.
		_, err = fmt.Fprintf(f, "1 %d %d\n", min(rows, 1000), min(columns, 1000))
		err = errors.Join(err, f.Close())
	}
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

// onFd calls do with a file's descriptor, which stays in the mode it is in.
func onFd(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if ctl := raw.Control(func(fd uintptr) { err = do(int(fd)) }); ctl != nil {
		return ctl
	}
	return err
}

// A typed reads a file and can be told to stop, so that what is typed later is
// left to whoever reads next.
type typed struct {
	file *os.File
	wake *os.File // a pipe; readable when it is time to stop
}

// Read is [io.ErrClosedPipe] when it was stopped.
func (t typed) Read(b []byte) (n int, err error) {
	err = onFd(t.wake, func(wake int) error {
		return onFd(t.file, func(fd int) error {
			fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLIN}}
			for {
				if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
					return err
				}
				if fds[0].Revents != 0 {
					return io.ErrClosedPipe
				}
				if fds[1].Revents == 0 {
					continue
				}
				var err error
				if n, err = unix.Read(fd, b); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
					return err
				}
			}
		})
	})
	switch {
	case errors.Is(err, unix.EIO): // a terminal that was hung up
		return 0, io.EOF
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

var past = time.Unix(1, 0) // a deadline that is over: it wakes who waits
