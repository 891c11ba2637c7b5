package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth"
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

// setSysctl writes a value on a thread that is inside the namespace. It is
// written without a look at what is there: most are to change, and a value
// that is there already changes nothing. Bare system calls, because package os
// would ask the poller about every file: nine of these are half a connect.
func setSysctl(path, value string) error {
	fd, err := unix.Open(root+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
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
