package oci

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pty is a terminal with a user: what is written to keys is typed, what the
// program writes to the terminal comes to the screen.
type pty struct {
	keys, terminal *os.File
	screen         *screen
}

func newPty(t *testing.T, rows, columns uint16) *pty {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a terminal: %v", err)
	}
	var n int
	err = onFd(keys, func(fd int) error {
		var err error
		if n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{keys, terminal, newScreen()}
	p.resize(t, rows, columns)
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(p.screen, keys)
	}()
	t.Cleanup(func() {
		terminal.Close()
		<-read
		keys.Close()
	})
	return p
}

func (p *pty) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	err := onFd(p.terminal, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (p *pty) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := p.keys.WriteString(keys); err != nil {
		t.Error(err)
	}
}

func (p *pty) settings(t *testing.T) (s unix.Termios) {
	t.Helper()
	err := onFd(p.terminal, func(fd int) error {
		got, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			s = *got
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ctl makes the fifo of a fake monitor.
func (f fake) ctl(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(f.dir, "ctl")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctl, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctl.SetReadDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { ctl.Close() })
	return ctl
}

func TestTerminal(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *pty, fake)
		want string
	}{
		{"exit", func(_ *testing.T, _ *pty, f fake) { f.Close() }, "false <nil>"},
		{"detach", func(t *testing.T, p *pty, _ fake) { p.press(t, "\x10\x11") }, "true <nil>"},
		{"signal", func(*testing.T, *pty, fake) { unix.Kill(os.Getpid(), unix.SIGHUP) }, "false ended by signal: hangup"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, f := connect(t)
			ctl := f.ctl(t)
			p := newPty(t, 24, 80)
			was := p.settings(t)
			keys, err := ParseDetachKeys("")
			if err != nil {
				t.Fatal(err)
			}
			done := startCopy(t.Context(), c, Streams{Stdin: p.terminal, Stdout: p.terminal}, AttachOptions{Terminal: true, DetachKeys: keys})
			line := make([]byte, 100)
			hearSize := func(want string) {
				t.Helper()
				if n, err := ctl.Read(line); string(line[:n]) != want {
					t.Errorf("got %q, %v, want %q", line[:n], err, want)
				}
			}
			hearSize("1 24 80\n")
			f.send(t, 2, "hello\r\n")
			p.screen.wait(t, "hello\r\n")
			if p.settings(t).Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 {
				t.Error("the terminal is not raw")
			}
			p.press(t, "\x03\x10a")
			if got := f.hear(t); got != "\x03" && got != "\x03\x10a" {
				t.Errorf("got %q", got)
			}
			p.resize(t, 5000, 30)
			unix.Kill(os.Getpid(), unix.SIGWINCH)
			hearSize("1 1000 30\n")
			tt.end(t, p, f)
			if r := waitCopy(t, done); fmt.Sprint(r.detached, " ", r.err) != tt.want {
				t.Errorf("got %+v, want %s", r, tt.want)
			}
			if now := p.settings(t); now != was {
				t.Errorf("the terminal is not as it was: %+v, was %+v", now, was)
			}
		})
	}
}
