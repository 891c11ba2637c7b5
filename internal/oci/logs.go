package oci

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// LogOptions say which lines of a log are wanted, and how.
type LogOptions struct {
	Follow       bool
	Since, Until time.Time // zero: no bound
	Tail         int       // the last lines only; negative: all
	Timestamps   bool      // before each line, in UTC
	// Keeps is the size in bytes that the log is cut at, for the message that
	// older lines are gone.
	Keeps int64
}

// MakeLog makes the log of a container ready for a monitor to write to; call it
// before each start. max is the size the monitor will cut it at; 0: it never
// does.
//
// conmon counts only what it has written itself: without this a container that
// is started over and over would have a log without a bound. With it the log is
// never larger than twice max.
func MakeLog(path string, max int64) error {
	// The sticky bit means nothing to a file. Ours has it, the files that conmon
	// puts in its place have not: so one knows that lines are gone.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600|fs.ModeSticky)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the log: %w", err)
	}
	if f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0); err != nil {
		return fmt.Errorf("make the log: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("make the log: %w", err)
	}
	if max > 0 && st.Size() >= max {
		return replaceLog(path)
	}
	// A monitor that was killed may have left half a line.
	var last [1]byte
	if _, err := f.ReadAt(last[:], st.Size()-1); err == nil && last[0] != '\n' {
		if _, err := f.Write([]byte("\n")); err != nil {
			return fmt.Errorf("make the log: %w", err)
		}
	}
	return nil
}

// replaceLog does what conmon does when a log is full: those who follow it see
// no difference.
func replaceLog(path string) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(f.Close(), os.Rename(tmp, path))
	}
	if err != nil {
		return fmt.Errorf("cut the log: %w", err)
	}
	return nil
}

// Logs writes the lines of a log that a monitor writes (k8s-file): the bytes
// that the container wrote, what was standard error to stderr. A line that came
// in pieces is one line. That older lines are gone, though they were asked for,
// is said in a line on stderr.
//
// With Follow it goes on until ended is closed, which its caller does when the
// monitor has written the container's exit status: conmon writes that last.
//
// What is not a line of a monitor is left out, and is an error in the end.
func Logs(ctx context.Context, path string, o LogOptions, ended <-chan struct{}, stdout, stderr io.Writer) error {
	r := newLogReader(o, stdout, stderr)
	var err error
	if o.Follow {
		err = r.follow(ctx, path, ended)
	} else {
		err = r.once(path)
	}
	if errors.Is(err, errUntil) {
		err = nil
	}
	if err = errors.Join(err, r.flush(), r.complaint()); err != nil {
		return fmt.Errorf("read log %s: %w", path, err)
	}
	return nil
}

// errUntil: a line is younger than what was asked for.
var errUntil = errors.New("the wanted time is over")

// A logReader reads log files, one after the other, and writes their lines.
type logReader struct {
	o   LogOptions
	out [2]*bufio.Writer // stdout, stderr

	src     io.ReaderAt
	off     int64  // of what follows buf in src
	buf     []byte // read and not yet shown: less than a line
	long    bool   // in a line that is too long to be one
	streams [2]struct{ open, hidden bool }

	bad    error // about the first line that is none
	badNum int
}

func newLogReader(o LogOptions, stdout, stderr io.Writer) *logReader {
	return &logReader{
		o: o, buf: make([]byte, 0, maxEntry),
		out: [2]*bufio.Writer{bufio.NewWriterSize(stdout, 32<<10), bufio.NewWriterSize(stderr, 4<<10)},
	}
}

// once shows what is in the log now. A log that is not there is empty.
func (r *logReader) once(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.begin(f); err != nil {
		return err
	}
	if err := r.drain(); err != nil {
		return err
	}
	return r.rest()
}

// begin goes to the first wanted line of the log.
func (r *logReader) begin(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	short := true
	r.open(f)
	if r.o.Tail >= 0 {
		if r.off, short, err = tailStart(f, st.Size(), r.o.Tail); err != nil {
			return err
		}
	}
	if !short || st.Mode()&fs.ModeSticky != 0 || (st.Size() > 0 && r.o.Since.After(firstTime(f))) {
		return nil
	}
	keeps := "it was cut"
	if r.o.Keeps > 0 {
		keeps = "the log keeps " + sizeText(r.o.Keeps)
	}
	return r.say("older lines are gone: " + keeps)
}

// open goes to the start of another file.
func (r *logReader) open(src io.ReaderAt) { r.src, r.off, r.buf, r.long = src, 0, r.buf[:0], false }

// drain shows all that is in the file.
func (r *logReader) drain() error {
	for {
		n, err := r.src.ReadAt(r.buf[len(r.buf):cap(r.buf)], r.off)
		r.buf = r.buf[:len(r.buf)+n]
		r.off += int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := r.lines(); err != nil {
			return err
		}
		if n == 0 {
			return r.flush()
		}
	}
}

// lines shows the lines in the buffer and keeps what is less than one.
func (r *logReader) lines() error {
	done := 0
	for {
		end := bytes.IndexByte(r.buf[done:], '\n')
		if end < 0 {
			break
		}
		line := r.buf[done : done+end+1]
		at := r.off - int64(len(r.buf)-done)
		done += end + 1
		if r.long {
			r.long = false
			continue
		}
		if err := r.line(line, at); err != nil {
			r.buf = r.buf[:copy(r.buf, r.buf[done:])]
			return err
		}
	}
	r.buf = r.buf[:copy(r.buf, r.buf[done:])]
	if len(r.buf) == cap(r.buf) {
		if !r.long {
			r.invalid(r.buf, r.off-int64(len(r.buf)))
		}
		r.long, r.buf = true, r.buf[:0]
	}
	return nil
}

// rest shows the start of a line that a monitor did not come to finish. If not
// even its head is whole there is nothing to show.
func (r *logReader) rest() error {
	line := r.buf
	r.buf = r.buf[:0]
	if e, ok := parseEntry(line); ok && !r.long {
		e.partial = true
		return r.show(e)
	}
	return nil
}

func (r *logReader) line(line []byte, at int64) error {
	e, ok := parseEntry(line)
	switch {
	case ok:
		return r.show(e)
	case len(line) > 1: // else MakeLog's end of half a line that had none
		r.invalid(line, at)
	}
	return nil
}

// show writes an entry, if it is wanted. Of a line in pieces the first decides.
func (r *logReader) show(e entry) error {
	s := &r.streams[e.stream]
	first := !s.open
	if first {
		if !r.o.Until.IsZero() && e.time.After(r.o.Until) {
			return errUntil
		}
		s.hidden = e.time.Before(r.o.Since)
	}
	s.open = e.partial
	if s.hidden {
		return nil
	}
	w := r.out[e.stream]
	// What was written first is to be seen first where both are one terminal.
	if err := r.out[1-e.stream].Flush(); err != nil {
		return err
	}
	if first && r.o.Timestamps {
		w.Write(e.time.UTC().AppendFormat(w.AvailableBuffer(), stampFormat))
	}
	text := e.text
	if e.partial {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	_, err := w.Write(text)
	return err
}

// stampFormat has nine digits always, so that lines stand below each other.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00 "

func (r *logReader) flush() error { return errors.Join(r.out[0].Flush(), r.out[1].Flush()) }

// say writes a line of ours to the error writer.
func (r *logReader) say(text string) error {
	if err := r.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(r.out[1], text)
	return errors.Join(err, r.flush())
}

func (r *logReader) invalid(line []byte, at int64) {
	if r.badNum++; r.bad == nil {
		line = bytes.TrimSuffix(line, []byte("\n"))
		r.bad = fmt.Errorf("the line at byte %d is none of conmon's: %.80q", at, line[:min(len(line), 80)])
	}
}

// complaint is the error about what was left out.
func (r *logReader) complaint() error {
	if r.badNum > 1 {
		return fmt.Errorf("%w (and %d more)", r.bad, r.badNum-1)
	}
	return r.bad
}

// sizeText writes a number of bytes as people do.
func sizeText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
