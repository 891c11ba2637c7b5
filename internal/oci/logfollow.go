package oci

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// follow shows what is in the log and what comes, until the container has
// ended.
//
// When the log is full conmon 2.1 closes it, makes PATH.tmp and renames it to
// PATH: the file that is open here stays whole, and nothing is written to it any
// more once another one stands at the path.
func (r *logReader) follow(ctx context.Context, path string, ended <-chan struct{}) error {
	w, err := watchLog(path)
	if err != nil {
		return err
	}
	defer w.inotify.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer w.inotify.SetReadDeadline(time.Unix(1, 0)) // wakes next
		var until <-chan time.Time
		if !r.o.Until.IsZero() {
			until = time.After(time.Until(r.o.Until))
		}
		select {
		case <-ctx.Done():
		case <-ended:
		case <-until:
		}
	}()
	f := &followed{r: r, w: w, path: path}
	defer f.close()
	for {
		err := w.next()
		last := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errLogGone)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !last {
			return err
		}
		if last {
			w.poll() // what it has not told yet; its errors are known
		}
		if err := f.catchUp(); err != nil {
			return err
		}
		if last {
			return r.rest()
		}
	}
}

// A followed is a log whose file may be replaced.
type followed struct {
	r    *logReader
	w    *logWatch
	path string
	file *os.File // nil: there is none yet
	seen int      // files that were opened after the first
}

func (f *followed) close() {
	if f.file != nil {
		f.file.Close()
	}
}

// catchUp shows all that is in the log.
func (f *followed) catchUp() error {
	for {
		if err := f.drain(); err != nil {
			return err
		}
		same, err := f.current()
		if err != nil {
			return err
		}
		if same {
			break
		}
		// What came between the end of the file and its replacement.
		if err := f.drain(); err != nil {
			return err
		}
		if err := f.open(); err != nil {
			return err
		}
	}
	// Each replacement is an event, so that one which was not opened is known.
	if f.file != nil && f.w.replaced > f.seen {
		f.seen = f.w.replaced
		return f.r.say("lines are gone here: the log was replaced faster than it could be read")
	}
	return nil
}

func (f *followed) drain() error {
	if f.file == nil {
		return nil
	}
	st, err := f.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() < f.r.off { // somebody has emptied it
		f.r.open(f.file)
	}
	return f.r.drain()
}

// current reports whether the file at the path is the one that is open, or
// there is none.
func (f *followed) current() (bool, error) {
	st, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil || f.file == nil {
		return false, err
	}
	have, err := f.file.Stat()
	return err == nil && os.SameFile(st, have), err
}

func (f *followed) open() error {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // and there will be an event
	}
	if err != nil {
		return err
	}
	if f.file != nil {
		f.close()
		f.file = file
		f.seen++
		f.r.open(file)
		return nil
	}
	// The count of replacements begins with a file that was at the path after all
	// events were read.
	f.file = file
	f.w.poll()
	f.w.replaced = 0
	same, err := f.current()
	if err == nil && !same {
		f.close()
		f.file = nil
		return nil // and catchUp opens again
	}
	return errors.Join(err, f.r.begin(file))
}

// errLogGone: the log was deleted, and so was its container.
var errLogGone = errors.New("the log was deleted")

// A logWatch tells when a log is written, made or replaced.
type logWatch struct {
	inotify  *os.File
	name     string
	replaced int // how often another file came to the path
	fresh    bool
}

func watchLog(path string) (*logWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &logWatch{inotify: os.NewFile(uintptr(fd), "inotify"), name: filepath.Base(path), fresh: true}
	// The directory and not the file: a watch of the file would not see what is
	// put in its place.
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ONLYDIR)
	if err != nil {
		w.inotify.Close()
		return nil, fmt.Errorf("watch %s: %w", filepath.Dir(path), err)
	}
	return w, nil
}

// next waits until there may be something new. It is [os.ErrDeadlineExceeded]
// when the read deadline of inotify is set, and errLogGone when there can be
// nothing any more. The first time it does not wait.
func (w *logWatch) next() error {
	if w.fresh {
		w.fresh = false
		return nil
	}
	var buf [16 << 10]byte
	for {
		n, err := w.inotify.Read(buf[:])
		if err != nil {
			return err
		}
		if ours, err := w.take(buf[:n]); ours || err != nil {
			return err
		}
	}
}

// poll takes the events that are there, without waiting.
func (w *logWatch) poll() {
	var buf [16 << 10]byte
	raw, err := w.inotify.SyscallConn()
	for n := 1; err == nil && n > 0; {
		err = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf[:]) })
		w.take(buf[:max(n, 0)])
	}
}

// take reads events, and reports whether one is about the log.
func (w *logWatch) take(b []byte) (ours bool, err error) {
	for len(b) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(b[4:]), int(binary.NativeEndian.Uint32(b[12:]))
		if len(b) < unix.SizeofInotifyEvent+size {
			break
		}
		name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
		b = b[unix.SizeofInotifyEvent+size:]
		switch {
		case mask&unix.IN_IGNORED != 0:
			err = errLogGone
		case mask&unix.IN_Q_OVERFLOW != 0:
			ours, w.replaced = true, w.replaced+1
		case name != w.name:
		case mask&unix.IN_DELETE != 0:
			// Its directory lives on as long as the file is open here.
			err = errLogGone
		default:
			ours = true
			if mask&(unix.IN_MOVED_TO|unix.IN_CREATE) != 0 {
				w.replaced++
			}
		}
	}
	return ours, err
}
