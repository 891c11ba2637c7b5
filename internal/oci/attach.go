package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Connection is a client of a container's standard streams.
type Connection struct {
	dir  string
	conn *net.UnixConn
}

// Streams are the caller's ends.
type Streams struct {
	Stdin          io.Reader // nil: the container is not written to
	Stdout, Stderr io.Writer
}

// AttachOptions say how streams are copied.
type AttachOptions struct {
	// Terminal: the container has a terminal of its own. If Stdin is one too, it
	// is handed over: every key goes to the container, and so does its size.
	Terminal bool
	// DetachKeys leave the container running. Only typed on a terminal.
	DetachKeys DetachKeys
	// Signal is called with each signal that this process gets, instead of its
	// usual effect. Nil: SIGHUP, SIGINT, SIGQUIT and SIGTERM end Copy with a
	// [SignalError].
	Signal func(syscall.Signal)
	// Ended is closed when the monitor has written the container's exit status.
	// It may be nil; but an exit command inherits the connection, which then is
	// open as long as that runs.
	Ended <-chan struct{}
}

// A SignalError is that a signal ended an attachment.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string { return "ended by signal: " + e.Signal.String() }

// Connect connects to the streams of the container whose bundle is dir. Between
// its creation and its start, nothing of its output is missed.
func Connect(dir string) (*Connection, error) {
	// A socket's address has room for 107 bytes; a descriptor is short.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", dir, err)
	}
	defer unix.Close(fd)
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: "/proc/self/fd/" + strconv.Itoa(fd) + "/attach"})
	var sys *os.SyscallError
	if errors.As(err, &sys) { // without the name, which says nothing
		err = sys.Err
	}
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", dir, err)
	}
	return &Connection{dir: dir, conn: conn}, nil
}

// Close ends a connection. The monitor takes it for the end of standard input,
// unless it was told to leave that open.
func (c *Connection) Close() error { return c.conn.Close() }

// Copy copies the streams until the container has ended (false), or its user
// has left it with the detach keys (true). It is called once.
//
// Standard input that ends is ended in the container as well; not if that has a
// terminal, where ctrl-D does it.
func (c *Connection) Copy(ctx context.Context, s Streams, o AttachOptions) (detached bool, err error) {
	if o.Terminal {
		if f, ok := s.Stdin.(*os.File); ok && IsTerminal(f) {
			undo, bad := rawTerminal(f)
			if bad != nil {
				return false, bad
			}
			defer func() { err = errors.Join(err, undo()) }()
			defer c.followSize(f)()
		}
	}
	a := &attachment{conn: c.conn, o: o, done: make(chan struct{})}
	defer a.watch(ctx)()
	if s.Stdin != nil {
		stop, bad := a.input(s.Stdin)
		if bad != nil {
			return false, bad
		}
		defer stop()
	}
	err = a.output(s)
	a.stop(nil)
	return a.detached, errors.Join(a.why, err)
}

// followSize gives the container's terminal the size of f, now and whenever it
// changes, until stop is called.
func (c *Connection) followSize(f *os.File) (stop func()) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	var wg sync.WaitGroup
	wg.Go(func() {
		for again := true; again; _, again = <-resized {
			// Best effort: a terminal of the wrong size is still a terminal.
			if rows, columns, err := TerminalSize(f); err == nil && rows > 0 && columns > 0 {
				Resize(c.dir, rows, columns)
			}
		}
	})
	return func() {
		signal.Stop(resized)
		close(resized)
		wg.Wait()
	}
}

// An attachment is a Copy that runs.
type attachment struct {
	conn *net.UnixConn
	o    AttachOptions

	once     sync.Once
	done     chan struct{} // closed by stop; then the fields below are set
	detached bool
	why      error
}

// stop makes output end; the first call says why.
func (a *attachment) stop(set func()) {
	a.once.Do(func() {
		if set != nil {
			set()
		}
		close(a.done)
		a.conn.SetDeadline(past)
	})
}

// watch stops the attachment when the context is over, the container has ended
// or a signal comes.
func (a *attachment) watch(ctx context.Context) (end func()) {
	signals := make(chan os.Signal, 64)
	if a.o.Signal != nil {
		signal.Notify(signals, forwarded()...)
	} else {
		signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-a.done:
				return
			case <-ctx.Done():
				a.stop(func() { a.why = ctx.Err() })
			case <-a.o.Ended:
				a.stop(nil)
			case sig := <-signals:
				if a.o.Signal != nil {
					a.o.Signal(sig.(syscall.Signal))
					continue
				}
				a.stop(func() { a.why = &SignalError{sig.(syscall.Signal)} })
			}
		}
	})
	return func() {
		a.stop(nil)
		signal.Stop(signals)
		wg.Wait()
	}
}

// forwarded are the signals that are for the container: not those of this
// process's own life.
func forwarded() (all []os.Signal) {
	for n := syscall.Signal(1); n <= 64; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGWINCH, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG,
			unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS, 32, 33, 34:
			continue // the last three are the C library's
		}
		all = append(all, n)
	}
	return all
}

// output copies the container's output until there is no more.
func (a *attachment) output(s Streams) error {
	buf := make([]byte, maxEntry)
	read := a.conn.Read
	for {
		n, err := read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if <-a.done; a.why != nil || a.detached {
				return nil
			}
			read = a.readNow // it has ended: what it has written is here
			continue
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the container's output: %w", err)
		}
		w := s.Stdout
		if buf[0] == streamStderr {
			w = s.Stderr
		}
		if _, err := w.Write(buf[1:n]); err != nil {
			return fmt.Errorf("write the container's output: %w", err)
		}
	}
}

// streamStderr begins a packet of standard error; 2 is standard output.
const streamStderr = 3

// readNow reads a packet that is here already, else it is EAGAIN.
func (a *attachment) readNow(b []byte) (n int, err error) {
	raw, err := a.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	if ctl := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); ctl != nil {
		return 0, ctl
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// maxInput is what a packet to conmon may hold: it reads 32 KiB - 1 at once and
// drops the rest.
const maxInput = 16 << 10

// input copies to the container until stop is called, which waits until nothing
// reads a file any more. Another reader may be left waiting in its Read.
func (a *attachment) input(r io.Reader) (stop func(), err error) {
	finished := make(chan struct{})
	stop = func() {}
	f, isFile := r.(*os.File)
	if isFile {
		wake, woken, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		r = typed{f, wake}
		stop = func() {
			woken.Close()
			<-finished
			wake.Close()
		}
	}
	keys := detacher{}
	if a.o.Terminal && (!isFile || IsTerminal(f)) {
		keys.keys = a.o.DetachKeys
	}
	go func() {
		defer close(finished)
		a.copyInput(r, &keys)
	}()
	return stop, nil
}

func (a *attachment) copyInput(r io.Reader, keys *detacher) {
	buf := make([]byte, maxInput-len(keys.keys))
	for {
		n, err := r.Read(buf)
		out, detached := keys.pass(buf[:n])
		if len(out) > 0 { // an empty packet is the end of input
			if _, err := a.conn.Write(out); err != nil {
				return // it takes no more: its output says why, or ends
			}
		}
		if detached {
			a.stop(func() { a.detached = true })
			return
		}
		if err != nil {
			if errors.Is(err, io.EOF) && !a.o.Terminal {
				a.conn.CloseWrite()
			}
			return
		}
	}
}
