package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A logWriter writes a log as conmon does.
type logWriter struct {
	t    testing.TB
	path string
	f    *os.File
}

func newLogWriter(t testing.TB) *logWriter {
	w := &logWriter{t: t, path: filepath.Join(t.TempDir(), "log")}
	if err := MakeLog(w.path, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.f, err = os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.f.Close() })
	return w
}

func (w *logWriter) raw(text string) {
	if _, err := w.f.WriteString(text); err != nil {
		w.t.Error(err)
	}
}

func (w *logWriter) line(text string) {
	w.raw("2026-01-01T12:00:00.000000001+02:00 stdout F " + text + "\n")
}

func (w *logWriter) rotate() {
	w.f.Close()
	var err error
	if w.f, err = os.OpenFile(w.path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
		err = os.Rename(w.path+".tmp", w.path)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// A screen is written to by one goroutine and looked at by another.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
	news chan struct{}
}

func newScreen() *screen { return &screen{news: make(chan struct{}, 1)} }

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	select {
	case s.news <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// wait waits until the screen shows text.
func (s *screen) wait(t testing.TB, text string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.news:
		case <-late:
			t.Fatalf("no %q in %q", text, s.String())
		}
	}
}

// startFollow follows a log until end is called.
func startFollow(t testing.TB, path string, o LogOptions) (out, errs *screen, end func() error) {
	out, errs = newScreen(), newScreen()
	ended, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	o.Follow = true
	go func() { done <- Logs(ctx, path, o, ended, out, errs) }()
	return out, errs, func() error {
		close(ended)
		return <-done
	}
}

func TestFollow(t *testing.T) {
	w := newLogWriter(t)
	w.line("one")
	out, errs, end := startFollow(t, w.path, LogOptions{Tail: -1})
	out.wait(t, "one\n")
	w.line("two")
	out.wait(t, "two\n")
	w.raw("2026-01-01T12:00:00.000000001+02:00 std")
	w.raw("out P thr")
	w.raw("\n2026-01-01T12:00:00.000000001+02:00 stdout F ee\n")
	out.wait(t, "three\n")
	w.line("four")
	w.rotate()
	w.line("five")
	out.wait(t, "five\n")
	w.rotate()
	w.line("six")
	w.raw("2026-01-01T12:00:00.000000001+02:00 stdout F se")
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if want := "one\ntwo\nthree\nfour\nfive\nsix\nse"; out.String() != want || errs.String() != "" {
		t.Errorf("got %q and %q, want %q", out.String(), errs.String(), want)
	}
}

// TestFollowShowsEachLineOnce follows a log that is cut while it is read, at a
// rate that a reader can keep up with.
func TestFollowShowsEachLineOnce(t *testing.T) {
	w := newLogWriter(t)
	out, errs, end := startFollow(t, w.path, LogOptions{Tail: -1})
	var want strings.Builder
	for i := range 2000 {
		w.line(fmt.Sprintf("line %d", i))
		fmt.Fprintf(&want, "line %d\n", i)
		if i%50 == 25 { // no line is at the end of a file
			w.rotate()
		}
		if i%50 == 0 {
			out.wait(t, fmt.Sprintf("line %d\n", i))
		}
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if out.String() != want.String() || errs.String() != "" {
		t.Errorf("got %d bytes and %q, want %d", len(out.String()), errs.String(), want.Len())
	}
}

// A gate holds a writer up.
type gate struct {
	screen
	hit, open chan struct{}
	once      sync.Once
}

func (g *gate) Write(b []byte) (int, error) {
	g.once.Do(func() {
		close(g.hit)
		<-g.open
	})
	return g.screen.Write(b)
}

func TestFollowSaysThatItWasTooSlow(t *testing.T) {
	w := newLogWriter(t)
	w.line("one")
	out := &gate{hit: make(chan struct{}), open: make(chan struct{})}
	var errs bytes.Buffer
	ended, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Logs(t.Context(), w.path, LogOptions{Tail: -1, Follow: true}, ended, out, &errs) }()
	<-out.hit
	w.line("two")
	w.rotate()
	w.line("three")
	w.rotate()
	w.line("four")
	close(ended)
	close(out.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "one\ntwo\nfour\n" || !strings.Contains(errs.String(), "lines are gone here") {
		t.Errorf("got %q and %q", got, errs.String())
	}
}

func TestFollowEnds(t *testing.T) {
	t.Run("with its context", func(t *testing.T) {
		w := newLogWriter(t)
		ctx, cancel := context.WithCancel(t.Context())
		out := newScreen()
		done := make(chan error, 1)
		w.line("one")
		go func() { done <- Logs(ctx, w.path, LogOptions{Tail: -1, Follow: true}, nil, out, out) }()
		out.wait(t, "one")
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "context canceled") {
			t.Error(err)
		}
	})
	t.Run("when the wanted time is over", func(t *testing.T) {
		w := newLogWriter(t)
		if err := Logs(t.Context(), w.path, LogOptions{Tail: -1, Follow: true, Until: time.Now().Add(10 * time.Millisecond)}, nil, io.Discard, io.Discard); err != nil {
			t.Error(err)
		}
	})
	t.Run("when the log is deleted", func(t *testing.T) {
		w := newLogWriter(t)
		out := newScreen()
		done := make(chan error, 1)
		w.line("one")
		go func() { done <- Logs(t.Context(), w.path, LogOptions{Tail: -1, Follow: true}, nil, out, out) }()
		out.wait(t, "one")
		if err := os.RemoveAll(filepath.Dir(w.path)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFollowWaitsForTheLog(t *testing.T) {
	dir := t.TempDir()
	out, errs, end := startFollow(t, filepath.Join(dir, "log"), LogOptions{Tail: -1})
	if err := MakeLog(filepath.Join(dir, "log"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &logWriter{t: t, f: f}
	w.line("one")
	out.wait(t, "one\n")
	if err := end(); err != nil || errs.String() != "" {
		t.Errorf("got %q, %v", errs.String(), err)
	}
}

func TestFollowOfAFileThatWasEmptied(t *testing.T) {
	w := newLogWriter(t)
	w.line("one")
	out, _, end := startFollow(t, w.path, LogOptions{Tail: -1})
	out.wait(t, "one\n")
	if err := w.f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	w.line("2")
	out.wait(t, "2\n")
	if err := end(); err != nil {
		t.Error(err)
	}
}
