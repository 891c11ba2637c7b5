package container

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"berth/internal/cgroup"
	"berth/internal/oci"
)

// A Usage is what a container uses.
type Usage struct {
	cgroup.Stats
	// Net is nil for one that has no network of its own: the host's.
	Net *Traffic
}

// Traffic is the bytes that came into a container and left it, by all of its
// links but the loopback.
type Traffic struct{ Received, Sent int64 }

// Usage returns what a container uses now. One that does not run uses nothing;
// false is returned then.
func (s *Service) Usage(d Detail) (u Usage, running bool, err error) {
	s.tools()
	if !oci.Alive(d.Run.First) {
		return u, false, nil
	}
	if u.Stats, err = s.group(d.ID).Stats(); err == nil && d.Net.Mode != "host" {
		u.Net, err = traffic(d.Run.First.Pid)
	}
	if !oci.Alive(d.Run.First) { // it has ended meanwhile, or the pid was another's
		return Usage{}, false, nil
	}
	if err != nil {
		return u, false, fmt.Errorf("look what container %s uses: %w", d.Name, err)
	}
	return u, true, nil
}

// traffic sums up the links that a process sees (/proc/PID/net/dev, proc(5)):
// two lines of headings, then "eth0: BYTES packets errs drop fifo frame
// compressed multicast BYTES …", received first.
func traffic(pid int) (*Traffic, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, err
	}
	var t Traffic
	for line := range strings.Lines(string(b)) {
		name, counts, ok := strings.Cut(line, ":")
		f := strings.Fields(counts)
		if !ok || len(f) < 16 || strings.TrimSpace(name) == "lo" {
			continue
		}
		in, err1 := strconv.ParseInt(f[0], 10, 64)
		out, err2 := strconv.ParseInt(f[8], 10, 64)
		if err1 == nil && err2 == nil {
			t.Received, t.Sent = t.Received+in, t.Sent+out
		}
	}
	return &t, nil
}
