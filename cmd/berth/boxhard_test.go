package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestGigabyteOfLog has a container write 1 GB of log, which is followed: the
// disk holds no more than is asked for, what a reader misses is said, and no
// reader grows.
func TestGigabyteOfLog(t *testing.T) {
	if testing.Short() {
		t.Skip("writes a gigabyte")
	}
	t.Parallel()
	// A part of 10 MB, a hundred times: what makes the lines is to be no slower
	// than what reads them.
	const part, width, most = 10_000, 1000, 1 << 20
	d := newDock(t)
	d.must(t, fmt.Sprintf(`mkfifo /run/go && awk 'BEGIN { for (i = 0; i < %d; i++) printf "%%0%dd\n", i }' >/run/part
		berth run -d --name loud --network none --log-opt max-size=%d -v /run/go:/go -v /run/part:/part --rootfs $R \
		sh -c 'read x </go; for i in $(seq 100); do cat /part; done; echo done'`, part, width-1, most))
	log := d.Path(strings.TrimSpace(d.must(t, "berth inspect -f '{{.LogPath}}' loud")))
	cmd := d.Command("sh", "-c", "exec berth logs -f loud")
	cmd.Env = append(os.Environ(), d.env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.must(t, "echo >/run/go")
	seen, torn, jumps, last := 0, 0, 0, ""
	want := 0
	for text := bufio.NewScanner(out); text.Scan(); seen++ {
		last = text.Text()
		if last == "done" {
			continue
		}
		n, err := strconv.Atoi(last)
		if err != nil || len(last) != width-1 {
			torn++ // its other half was in a file that the reader missed
			continue
		}
		if n != want {
			jumps++
		}
		want = (n + 1) % part
		if seen%1000 == 0 {
			if on := diskUse(log); on > 2*most+1<<16 {
				t.Fatalf("the log takes %d bytes, and %d were asked for", on, most)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	gaps := strings.Count(said.String(), "lines are gone here")
	if last != "done" || torn > jumps || gaps == 0 && (jumps > 0 || seen != 100*part+1) {
		t.Errorf("%d lines, %d torn, %d jumps, %d of them said; the last is %.20q", seen, torn, jumps, gaps, last)
	}
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	if peak > 64<<10 {
		t.Errorf("the reader took %d KiB", peak)
	}
	t.Logf("%d lines, %d gaps, %d KiB", seen, gaps, peak)
	d.says(t, "berth wait loud", "0")
	d.says(t, "berth logs loud 2>&1 >/dev/null", "older lines are gone: the log keeps 1 MiB")
	d.says(t, "berth logs loud 2>/dev/null | tail -n 2 | sed 's/^0*//'", strconv.Itoa(part-1)+"\ndone")
}

// diskUse is what a log and what is made in its place take.
func diskUse(log string) (bytes int64) {
	files, _ := filepath.Glob(log + "*")
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

// TestClosedTerminal has a process close its terminal: who is attached waits for
// its end, and for what it writes if it opens the terminal again, and nobody
// takes any processor time.
func TestClosedTerminal(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	d.must(t, `mkfifo /run/go && berth run -d -t --name closed --network none -v /run/go:/go --rootfs $R \
		sh -c 'echo open; exec <&- >&- 2>&-; read x </go; echo again >/dev/console; trap "" TERM; while :; do sleep 1000; done'`)
	monitor := d.conmons()[0]
	clients := func() int {
		n := 0
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", monitor))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n
	}
	none := clients()
	var attached [2]*exec.Cmd
	var shown [2]bytes.Buffer
	for i, command := range []string{"berth attach --no-stdin closed", "script -qec 'berth attach closed' /dev/null"} {
		cmd := d.Command("sh", "-c", "exec "+command)
		cmd.Env = append(os.Environ(), d.env...)
		cmd.Stdout, cmd.Stderr = &shown[i], &shown[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		attached[i] = cmd
	}
	eventually(t, "they are not attached", func() bool { return clients() == none+len(attached) })
	before := ticks(t, monitor)
	d.must(t, "timeout 1 tail -f /dev/null; echo >/run/go")
	if spent := ticks(t, monitor) - before; spent > 20 { // of 100 a second
		t.Errorf("the monitor took %d ticks in a second", spent)
	}
	d.await(t, "berth logs closed | grep -q again")
	begin := time.Now()
	d.must(t, "berth stop -t 1 closed")
	if spent := time.Since(begin); spent > 8*time.Second {
		t.Errorf("it was stopped in %v", spent)
	}
	for i, cmd := range attached {
		cmd.Wait()
		used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		if got := strings.ReplaceAll(shown[i].String(), "\r", ""); got != "again\n" || cmd.ProcessState.ExitCode() != 137 || used > 500*time.Millisecond {
			t.Errorf("attached, it shows %q, ends with %d and took %v", got, cmd.ProcessState.ExitCode(), used)
		}
	}
}

// ticks is the processor time of a process, in hundredths of a second.
func ticks(t *testing.T, pid int) (sum int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):]))
	for _, f := range fields[12:14] {
		n, _ := strconv.Atoi(f)
		sum += n
	}
	return sum
}
