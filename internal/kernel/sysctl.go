package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/crash"
	"berth/internal/plan"
)

// root is where sysctls are files. Those below net belong to the namespace of
// the thread that opens them.
const root = "/proc/sys/"

func (p *place) sysctl(path string) (value string, err error) {
	err = p.ns.Do(func() error {
		b, err := os.ReadFile(root + path)
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// setSysctls writes sysctls of one place, in their order.
func (s session) setSysctls(same []plan.SetSysctl) error {
	where := same[0].Key.Place
	var failed plan.SetSysctl
	err := s.put("", "", where, func(p *place) error {
		rest := s.newborn(p, same)
		if len(rest) == 0 {
			return nil
		}
		return p.ns.Do(func() error {
			var d sysctlDir
			defer d.close()
			for _, step := range rest {
				crash.Point("kernel.sysctl")
				if err := d.set(step.Key.Path, step.Value); err != nil {
					failed = step
					return err
				}
			}
			return nil
		})
	})
	var o *OpError
	if errors.As(err, &o) {
		err = op("set sysctl", failed.Key.Path+" to "+failed.Value, where, o.Err)
	}
	return err
}

// settable are the IPv4 sysctls of a link that rtnetlink sets too, and that have
// nothing to undo when they become 0 on a link that never was up: by name, the
// IPV4_DEVCONF_* number of ip.h.
var settable = map[string]int{"forwarding": 1, "accept_redirects": 4}

// newborn sets by rtnetlink what it can of links that were just made, and
// returns the rest. A sysctl's file takes longer with every namespace of the
// machine: all of their directories net/ipv4 are in one chain of the kernel's
// hash table (0.8 ms with 900 of them, Linux 6.18).
func (s session) newborn(p *place, steps []plan.SetSysctl) (rest []plan.SetSysctl) {
	conf := map[string]*nl.RtAttr{}
	for _, step := range steps {
		dev, name, _ := strings.Cut(strings.TrimPrefix(step.Key.Path, "net/ipv4/conf/"), "/")
		_, made := s.made[plan.LinkKey{Place: p.name, Name: dev}]
		number := settable[name]
		if !made || number == 0 || step.Value != "0" {
			rest = append(rest, step)
			continue
		}
		if conf[dev] == nil {
			conf[dev] = nl.NewRtAttr(inetConf, nil)
		}
		conf[dev].AddRtAttr(number, nl.Uint32Attr(0))
	}
	for dev, values := range conf {
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		spec.AddRtAttr(unix.AF_INET, nil).AddChild(values)
		index, err := p.indexOf(dev)
		if err == nil {
			req := p.change(index)
			req.AddData(spec)
			_, err = req.Execute(unix.NETLINK_ROUTE, 0)
		}
		if err != nil {
			return steps // the files say what is wrong
		}
	}
	return rest
}

// A sysctlDir is the directory of the sysctl that was written last, open for
// the next. Its zero value has none.
type sysctlDir struct {
	path string
	fd   int
}

func (d *sysctlDir) close() {
	if d.path != "" {
		unix.Close(d.fd)
		d.path = ""
	}
}

// set writes a value on a thread that is inside the namespace. It is written
// without a look at what is there: most are to change, and a value that is
// there already changes nothing. Bare system calls, because package os would
// ask the poller about every file.
func (d *sysctlDir) set(path, value string) error {
	dir, name := filepath.Split(path)
	if dir != d.path {
		d.close()
		fd, err := unix.Open(root+dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			return missing(path, value, exists)
		}
		if err != nil {
			return err
		}
		d.path, d.fd = dir, fd
	}
	fd, err := unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return missing(path, value, exists)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

func exists(path string) bool {
	_, err := os.Stat(root + path)
	return err == nil
}

// missing says what it means that a sysctl is not there.
func missing(path, value string, exists func(string) bool) error {
	switch {
	case strings.HasPrefix(path, "net/ipv6/") && !exists("net/ipv6"):
		if value == closedValue(path) || believesRA(path, value) {
			return nil // without IPv6 all of it is closed
		}
		return fmt.Errorf("IPv6 is off: %w", berth.ErrUnsupported)
	case exists(filepath.Dir(path)):
		return unix.ENOENT
	case strings.HasSuffix(path, "/route_localnet") && value == "0", believesRA(path, value):
		// Its link is gone: what closes is closed, and uplinks come and go.
		return nil
	}
	return unix.ENOENT
}

// believesRA reports whether a sysctl lets an uplink go on believing router
// advertisements. It is the one sysctl of links that are not Berth's.
func believesRA(path, value string) bool {
	return strings.HasSuffix(path, "/accept_ra") && value != "0"
}

// readSysctls reads several, on one thread inside the namespace.
func (p *place) readSysctls(state *plan.State, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	return p.ns.Do(func() error {
		off := !exists("net/ipv6")
		for _, path := range paths {
			b, err := os.ReadFile(root + path)
			k := plan.SysctlKey{Place: p.name, Path: path}
			switch {
			case err == nil:
				state.Sysctls[k] = strings.TrimSpace(string(b))
			case off && strings.HasPrefix(path, "net/ipv6/"):
				state.Sysctls[k] = closedValue(path)
			case !errors.Is(err, fs.ErrNotExist):
				return err
			}
		}
		return nil
	})
}

// closedValue is what an IPv6 sysctl is as good as on a host without IPv6.
func closedValue(path string) string {
	if strings.HasSuffix(path, "/disable_ipv6") {
		return "1"
	}
	return "0"
}

// Sysctl reads a sysctl of a place, by its path below /proc/sys.
func (k *Kernel) Sysctl(name plan.Place, path string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := k.session().place(name)
	if err != nil {
		return "", err
	}
	return p.sysctl(path)
}
