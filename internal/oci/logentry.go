package oci

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// maxEntry is more than the longest entry that conmon writes: its buffer of
// 8 KiB, up to 32 KiB in later versions, and 45 bytes.
const maxEntry = 64 << 10

// maxHead is more than what is before the text of an entry.
const maxHead = 64

// An entry is a line of the file: a line of the container's, or a piece of one.
//
//	2026-01-31T10:20:30.123456789+00:00 stdout F text
type entry struct {
	time    time.Time
	stream  int    // 0: stdout, 1: stderr
	partial bool   // the line goes on in the next entry of the stream
	text    []byte // with the newline, if there is one
}

// parseEntry takes an entry apart.
func parseEntry(line []byte) (e entry, ok bool) {
	stamp, e, ok := parseHead(line)
	if !ok {
		return entry{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	e.time = t
	return e, err == nil
}

// parseHead is parseEntry without the time.
func parseHead(line []byte) (stamp []byte, e entry, ok bool) {
	stamp, rest, _ := bytes.Cut(line, []byte(" "))
	stream, rest, _ := bytes.Cut(rest, []byte(" "))
	tag, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok || len(tag) != 1 {
		return nil, entry{}, false
	}
	switch string(stream) {
	case "stdout":
	case "stderr":
		e.stream = 1
	default:
		return nil, entry{}, false
	}
	e.partial, e.text = tag[0] == 'P', text
	return stamp, e, e.partial || tag[0] == 'F'
}

// firstTime is the time of the first entry; zero if there is none.
func firstTime(src io.ReaderAt) time.Time {
	head := make([]byte, maxHead)
	n, _ := src.ReadAt(head, 0) // less than a head: no time
	e, _ := parseEntry(head[:n])
	return e.time
}

// tailStart returns where the last n lines begin, and whether there are fewer.
// It reads the file from its end.
//
// A line in pieces is one line. If a line of the other stream lies between the
// pieces of the first one, that begins at the piece behind it.
func tailStart(src io.ReaderAt, size int64, n int) (start int64, short bool, err error) {
	const block = 64 << 10
	buf := make([]byte, block+maxHead)
	count := tailCount{most: n}
	if n == 0 {
		return size, false, nil
	}
	end := size // of the entry whose start is looked for
	for to := size; to > 0; {
		from := max(0, to-block)
		b := buf[:min(to-from+maxHead, size-from)]
		if _, err := src.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		for {
			// The newline at end-1 is the entry's own.
			nl := bytes.LastIndexByte(b[:min(to, end-1)-from], '\n')
			if nl < 0 {
				break
			}
			if count.enough(b[nl+1:]) {
				return end, false, nil
			}
			end = from + int64(nl) + 1
		}
		if from == 0 && count.enough(b) {
			return end, false, nil
		}
		to = from
	}
	return 0, count.lines < n, nil
}

// A tailCount counts lines from the last to the first.
type tailCount struct {
	most, lines int
	later       [2]bool // the stream has an entry that is counted
}

// enough counts the entry that b begins with, and reports whether it is one too
// many.
func (c *tailCount) enough(b []byte) bool {
	_, e, ok := parseHead(b)
	if !ok || !e.partial || !c.later[e.stream] {
		c.lines++
	}
	if ok {
		c.later[e.stream] = true
	}
	return c.lines > c.most
}
