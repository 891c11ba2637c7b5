package cgroup

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errThreaded is the kernel's answer to what a threaded group cannot do.
var errThreaded error = unix.EOPNOTSUPP

// gone reports whether an error says that a group is not there: ENODEV comes
// from a file that was opened before its group was removed.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// write writes a file of a group.
func write(dir, name, value string) error {
	f, err := os.OpenFile(path.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// read returns a file's text without its end of line; false if it has none.
func read(dir, name string) (string, bool) {
	if dir == "" {
		return "", false
	}
	b, err := os.ReadFile(path.Join(dir, name))
	return strings.TrimSpace(string(b)), err == nil
}

// number reads a count; what is above an int64 is the most of it.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt64
	}
	return n
}

// value reads a file of one number; "max" is -1.
func value(dir, name string) (int64, bool) {
	s, ok := read(dir, name)
	if s == "max" {
		return -1, ok
	}
	return number(s), ok
}

// table reads a file of lines "name number".
func table(dir, name string) (map[string]int64, bool) {
	s, ok := read(dir, name)
	if !ok {
		return nil, false
	}
	t := map[string]int64{}
	for line := range strings.Lines(s) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			t[k] = number(v)
		}
	}
	return t, true
}
