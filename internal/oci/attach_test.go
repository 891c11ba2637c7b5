package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fake is the monitor's end of a connection.
type fake struct {
	dir string
	*net.UnixConn
}

// connect makes a connection to a fake monitor, in a directory whose name is too
// long for a socket's address.
func connect(t *testing.T) (*Connection, fake) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: "attach"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Connect(dir)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() {
		conn.Close()
		c.Close()
	})
	return c, fake{dir, conn}
}

// send writes a packet of a stream.
func (f fake) send(t *testing.T, stream byte, text string) {
	t.Helper()
	if _, err := f.Write(append([]byte{stream}, text...)); err != nil {
		t.Error(err)
	}
}

// hear reads a packet; "" is the end.
func (f fake) hear(t *testing.T) string {
	t.Helper()
	b := make([]byte, 32<<10-1) // as conmon
	n, err := f.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	return string(b[:n])
}

// A copied is what Copy returned.
type copied struct {
	detached bool
	err      error
}

// startCopy runs Copy.
func startCopy(ctx context.Context, c *Connection, s Streams, o AttachOptions) <-chan copied {
	done := make(chan copied, 1)
	go func() {
		detached, err := c.Copy(ctx, s, o)
		done <- copied{detached, err}
	}()
	return done
}

func waitCopy(t *testing.T, done <-chan copied) copied {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(30 * time.Second):
		t.Fatal("Copy does not return")
		panic("unreachable")
	}
}

func TestCopySplitsStreams(t *testing.T) {
	c, f := connect(t)
	var out, errs bytes.Buffer
	done := startCopy(t.Context(), c, Streams{Stdout: &out, Stderr: &errs}, AttachOptions{})
	f.send(t, 2, "one ")
	f.send(t, 3, "bad ")
	f.send(t, 2, strings.Repeat("x", 8192))
	f.send(t, 3, "worse")
	f.Close()
	if r := waitCopy(t, done); r != (copied{}) {
		t.Errorf("%+v", r)
	}
	if out.String() != "one "+strings.Repeat("x", 8192) || errs.String() != "bad worse" {
		t.Errorf("got %.20q and %q", out.String(), errs.String())
	}
}

// TestCopyInput: packets are small enough for conmon, the end of input is
// handed on, and the output of after it is read.
func TestCopyInput(t *testing.T) {
	c, f := connect(t)
	want := strings.Repeat("0123456789abcdef", 10000)
	var out bytes.Buffer
	done := startCopy(t.Context(), c, Streams{Stdin: strings.NewReader(want), Stdout: &out}, AttachOptions{})
	var got strings.Builder
	for {
		s := f.hear(t)
		if s == "" {
			break
		}
		got.WriteString(s)
	}
	if got.String() != want {
		t.Errorf("got %d bytes, want %d", got.Len(), len(want))
	}
	f.send(t, 2, "after")
	f.Close()
	if r := waitCopy(t, done); r != (copied{}) || out.String() != "after" {
		t.Errorf("%+v, %q", r, out.String())
	}
}

func TestCopyEnds(t *testing.T) {
	start := func(t *testing.T, ctx context.Context, o AttachOptions) (fake, *screen, <-chan copied) {
		c, f := connect(t)
		out := newScreen()
		// Its input never comes and never ends.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		done := startCopy(ctx, c, Streams{Stdin: r, Stdout: out, Stderr: out}, o)
		f.send(t, 2, "ready")
		out.wait(t, "ready")
		return f, out, done
	}
	t.Run("when the container has", func(t *testing.T) {
		f, _, done := start(t, t.Context(), AttachOptions{})
		f.Close()
		if r := waitCopy(t, done); r != (copied{}) {
			t.Errorf("%+v", r)
		}
	})
	// The exit command holds the connection, and all output is there.
	t.Run("when the container has though the connection is open", func(t *testing.T) {
		ended := make(chan struct{})
		f, out, done := start(t, t.Context(), AttachOptions{Ended: ended})
		for i := range 20 {
			f.send(t, 2, fmt.Sprintf("<%d>", i))
		}
		close(ended)
		if r := waitCopy(t, done); r != (copied{}) || !strings.HasSuffix(out.String(), "<18><19>") {
			t.Errorf("%+v %q", r, out.String())
		}
	})
	t.Run("with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, _, done := start(t, ctx, AttachOptions{})
		cancel()
		if r := waitCopy(t, done); !errors.Is(r.err, context.Canceled) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("with a signal", func(t *testing.T) {
		_, _, done := start(t, t.Context(), AttachOptions{})
		unix.Kill(os.Getpid(), unix.SIGTERM)
		var sig *SignalError
		if r := waitCopy(t, done); !errors.As(r.err, &sig) || sig.Signal != unix.SIGTERM {
			t.Errorf("%+v", r)
		}
	})
	t.Run("not with a signal that is handed on", func(t *testing.T) {
		got := make(chan syscall.Signal, 1)
		f, _, done := start(t, t.Context(), AttachOptions{Signal: func(s syscall.Signal) { got <- s }})
		for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGUSR1} {
			unix.Kill(os.Getpid(), sig)
			if s := <-got; s != sig {
				t.Errorf("got %v, want %v", s, sig)
			}
		}
		f.Close()
		if r := waitCopy(t, done); r != (copied{}) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("when nobody takes its output", func(t *testing.T) {
		c, f := connect(t)
		f.send(t, 2, "x")
		r, w := io.Pipe()
		r.CloseWithError(unix.EPIPE)
		if r := waitCopy(t, startCopy(t.Context(), c, Streams{Stdout: w}, AttachOptions{})); !errors.Is(r.err, unix.EPIPE) {
			t.Errorf("%+v", r)
		}
	})
}

// TestCopyLeavesWhatIsTyped: what is typed after Copy is left to the next reader.
func TestCopyLeavesWhatIsTyped(t *testing.T) {
	c, f := connect(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	done := startCopy(t.Context(), c, Streams{Stdin: r, Stdout: io.Discard}, AttachOptions{})
	fmt.Fprint(w, "one")
	if got := f.hear(t); got != "one" {
		t.Errorf("got %q", got)
	}
	f.Close()
	waitCopy(t, done)
	fmt.Fprint(w, "two")
	b := make([]byte, 10)
	if n, err := r.Read(b); string(b[:n]) != "two" {
		t.Errorf("got %q, %v", b[:n], err)
	}
}

func TestConnectToNobody(t *testing.T) {
	dir := t.TempDir()
	_, err := Connect(dir)
	if !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "attach to "+dir+": ") {
		t.Error(err)
	}
	if _, err := Connect(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
