package kernel

import (
	"errors"
	"io/fs"
	"os"
	"strings"

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

// setSysctl writes a value, unless it is there already, on a thread that is
// inside the namespace.
func setSysctl(path, value string) error {
	b, err := os.ReadFile(root + path)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, "net/ipv6/") {
		if _, err := os.Stat(root + "net/ipv6"); errors.Is(err, fs.ErrNotExist) {
			return nil // without IPv6 all of it is closed
		}
	}
	if err != nil || strings.TrimSpace(string(b)) == value {
		return err
	}
	return os.WriteFile(root+path, []byte(value), 0)
}

// readSysctls reads several, on one thread inside the namespace.
func (p *place) readSysctls(state *plan.State, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	return p.ns.Do(func() error {
		off := false
		if _, err := os.Stat(root + "net/ipv6"); errors.Is(err, fs.ErrNotExist) {
			off = true
		}
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
	s := k.session()
	defer s.close()
	p, err := s.place(name)
	if err != nil {
		return "", err
	}
	return p.sysctl(path)
}
