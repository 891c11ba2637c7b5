package oci

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample is a log with both streams, lines in pieces, and a last line without
// an end.
const sample = `2026-01-01T12:00:00.000000001+02:00 stdout F one
2026-01-01T12:00:01.000000000+02:00 stderr F two
2026-01-01T12:00:02.000000000+02:00 stdout P thr
2026-01-01T12:00:02.000000000+02:00 stdout P e
2026-01-01T12:00:02.500000000+02:00 stdout F e
2026-01-01T12:00:03.000000000+02:00 stdout F 
2026-01-01T12:00:04.000000000+02:00 stderr F  four 
2026-01-01T12:00:05.000000000+02:00 stdout P fi
`

func at(second int) time.Time {
	return time.Date(2026, 1, 1, 10, 0, second, 0, time.UTC)
}

// writeLog makes a log in a directory of its own.
func writeLog(t testing.TB, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600|mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLogs(t *testing.T) {
	for _, tt := range []struct {
		name     string
		o        LogOptions
		out, err string
	}{
		{"all", LogOptions{Tail: -1}, "one\nthree\n\nfi", "two\n four \n"},
		{"none", LogOptions{Tail: 0}, "", ""},
		{"tail 1 is a line without an end", LogOptions{Tail: 1}, "fi", ""},
		{"tail 3", LogOptions{Tail: 3}, "\nfi", " four \n"},
		{"tail 4 has all pieces of a line", LogOptions{Tail: 4}, "three\n\nfi", " four \n"},
		{"tail of more than there is", LogOptions{Tail: 99}, "one\nthree\n\nfi", "two\n four \n"},
		{"since", LogOptions{Tail: -1, Since: at(2)}, "three\n\nfi", " four \n"},
		{"since the middle of a line", LogOptions{Tail: -1, Since: at(2).Add(time.Millisecond)}, "\nfi", " four \n"},
		{"until", LogOptions{Tail: -1, Until: at(2)}, "one\nthree\n", "two\n"},
		{"since and until", LogOptions{Tail: -1, Since: at(1), Until: at(1)}, "", "two\n"},
		{
			"timestamps", LogOptions{Tail: 4, Timestamps: true},
			"2026-01-01T10:00:02.000000000Z three\n2026-01-01T10:00:03.000000000Z \n2026-01-01T10:00:05.000000000Z fi",
			"2026-01-01T10:00:04.000000000Z  four \n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, err strings.Builder
			if err := Logs(t.Context(), writeLog(t, sample, os.ModeSticky), tt.o, nil, &out, &err); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.out || err.String() != tt.err {
				t.Errorf("got %q and %q, want %q and %q", out.String(), err.String(), tt.out, tt.err)
			}
		})
	}
}

func TestLogsOfNoFile(t *testing.T) {
	var out bytes.Buffer
	if err := Logs(t.Context(), filepath.Join(t.TempDir(), "log"), LogOptions{Tail: -1}, nil, &out, &out); err != nil || out.Len() > 0 {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// TestLogsKeepTheOrderOfStreams: both are one terminal.
func TestLogsKeepTheOrderOfStreams(t *testing.T) {
	var out bytes.Buffer
	if err := Logs(t.Context(), writeLog(t, sample, os.ModeSticky), LogOptions{Tail: -1}, nil, &out, &out); err != nil {
		t.Fatal(err)
	}
	if want := "one\ntwo\nthree\n\n four \nfi"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestLogsSayThatLinesAreGone(t *testing.T) {
	const gone = "older lines are gone: the log keeps 16 MiB\n"
	for _, tt := range []struct {
		name string
		mode os.FileMode
		o    LogOptions
		want string
	}{
		{"the first file", os.ModeSticky, LogOptions{Tail: -1}, ""},
		{"all", 0, LogOptions{Tail: -1}, gone},
		{"since before", 0, LogOptions{Tail: -1, Since: at(-1)}, gone},
		{"since after", 0, LogOptions{Tail: -1, Since: at(1)}, ""},
		{"tail that is there", 0, LogOptions{Tail: 6}, ""},
		{"tail that is not", 0, LogOptions{Tail: 7}, gone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Keeps = 16 << 20
			var err strings.Builder
			if err := Logs(t.Context(), writeLog(t, sample, tt.mode), tt.o, nil, io.Discard, &err); err != nil {
				t.Fatal(err)
			}
			if got, _ := strings.CutSuffix(err.String(), "two\n four \n"); !strings.HasPrefix(got, tt.want) || tt.want == "" && strings.Contains(got, "gone") {
				t.Errorf("got %q, want %q", err.String(), tt.want)
			}
		})
	}
}

func TestLogsNameInvalidLines(t *testing.T) {
	for _, tt := range []struct{ name, bad, want string }{
		{"text", "hello\n", `the line at byte 49 is none of conmon's: "hello"`},
		{"tag", "2026-01-01T12:00:00.000000001+02:00 stdout X one\n", "X one"},
		{"stream", "2026-01-01T12:00:00.000000001+02:00 stdin F one\n", "stdin"},
		{"time", "2026-13-01T12:00:00.000000001+02:00 stdout F one\n", "2026-13"},
		{"zeros", strings.Repeat("\x00", 100) + "\n", "byte 49"},
		{"long", strings.Repeat("x", 3*maxEntry) + "\n", "byte 49"},
		{"two", "a\nb\n", `"a" (and 1 more)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			good := strings.SplitAfter(sample, "\n")
			var out strings.Builder
			err := Logs(t.Context(), writeLog(t, good[0]+tt.bad+good[5], os.ModeSticky), LogOptions{Tail: -1}, nil, &out, &out)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if got := out.String(); got != "one\n\n" && tt.name != "long" {
				t.Errorf("the other lines are %q", got)
			}
		})
	}
}

func TestMakeLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	read := func() (string, os.FileMode) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b), st.Mode()
	}
	step := func(max int64, want string, mode os.FileMode) {
		t.Helper()
		if err := MakeLog(path, max); err != nil {
			t.Fatal(err)
		}
		if got, m := read(); got != want || m != mode {
			t.Errorf("got %q %v, want %q %v", got, m, want, mode)
		}
	}
	step(100, "", 0o600|os.ModeSticky)
	step(100, "", 0o600|os.ModeSticky)
	if err := os.WriteFile(path, []byte("2026-01-01T12"), 0); err != nil {
		t.Fatal(err)
	}
	step(100, "2026-01-01T12\n", 0o600|os.ModeSticky)
	step(14, "", 0o600)
	step(14, "", 0o600)
}

// TestTailReadsTheEnd reads the last line of a large file, most of which is a
// hole: a reader of the whole would need its size.
func TestTailReadsTheEnd(t *testing.T) {
	path := writeLog(t, "", os.ModeSticky)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("\n"+sample), 1<<40); err != nil {
		t.Skipf("no files of 1 TiB here: %v", err)
	}
	var out strings.Builder
	if err := Logs(t.Context(), path, LogOptions{Tail: 3}, nil, &out, io.Discard); err != nil || out.String() != "\nfi" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// FuzzLogs looks for what makes the reader panic or disagree with itself: the
// tail of a log of one stream is the end of the whole.
func FuzzLogs(f *testing.F) {
	f.Add([]byte(sample), 2)
	f.Add([]byte("\x00\nhello\n"+sample), 3)
	show := func(b []byte, tail int) (string, error) {
		var out bytes.Buffer
		r := newLogReader(LogOptions{Tail: tail}, &out, io.Discard)
		r.open(bytes.NewReader(b))
		if tail >= 0 {
			off, _, err := tailStart(bytes.NewReader(b), int64(len(b)), tail)
			if err != nil {
				return "", err
			}
			r.off = off
		}
		if err := r.drain(); err != nil {
			return "", err
		}
		if err := r.rest(); err != nil {
			return "", err
		}
		return out.String(), r.flush()
	}
	f.Fuzz(func(t *testing.T, b []byte, tail int) {
		all, err := show(b, -1)
		if err != nil {
			t.Fatal(err)
		}
		end, err := show(b, max(tail, -1))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(all, end) {
			t.Errorf("the tail %q is not the end of %q", end, all)
		}
	})
}
