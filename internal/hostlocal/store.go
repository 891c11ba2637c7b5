package hostlocal

import (
	"bufio"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
)

// A store is the directory of one network: a file for each address, named by
// it, which says whose it is; one for each set, which says what was given last;
// and one that is locked.
type store struct {
	dir  string
	lock *os.File
}

const lastPrefix = "last_reserved_ip."

// open opens and locks the store. It makes one only if it is asked to; without
// one there is nil.
func open(c *Config, create bool) (*store, error) {
	dir := filepath.Join(c.DataDir, c.Name)
	if create {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o750)
	if errors.Is(err, fs.ErrNotExist) && !create {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return &store{dir, f}, nil
}

func (s *store) close() { s.lock.Close() }

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// reserve takes an address, if nobody has it.
func (s *store) reserve(a netip.Addr, set int, o owner) (bool, error) {
	f, err := os.OpenFile(s.path(a.String()), os.O_WRONLY|os.O_EXCL|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = f.WriteString(o.String())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.WriteFile(s.path(lastPrefix+strconv.Itoa(set)), []byte(a.String()), 0o600)
	}
	if err != nil {
		return false, errors.Join(err, s.release(a.String()))
	}
	return true, nil
}

// last is what was reserved last of a set, not valid if that is not known.
func (s *store) last(set int) netip.Addr {
	b, err := os.ReadFile(s.path(lastPrefix + strconv.Itoa(set)))
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(strings.TrimSpace(string(b)))
	return a
}

// each calls do for every address that is taken. A file that cannot be read is
// nobody's.
func (s *store) each(do func(name string, o owner) error) error {
	all, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range all {
		name := f.Name()
		if name == "lock" || strings.HasPrefix(name, lastPrefix) || !f.Type().IsRegular() {
			continue
		}
		if b, err := os.ReadFile(s.path(name)); err == nil {
			errs = append(errs, do(name, parseOwner(b)))
		}
	}
	return errors.Join(errs...)
}

// of are the addresses of an owner. Older versions wrote no interface.
func (s *store) of(o owner) (has []netip.Addr, err error) {
	o.container = strings.TrimSpace(o.container)
	err = s.each(func(name string, by owner) error {
		a, err := netip.ParseAddr(name)
		if err == nil && (by == o || by == owner{container: o.container}) {
			has = append(has, a)
		}
		return nil
	})
	return has, err
}

// releaseOf frees what an owner has, or what an older version wrote for its
// container.
func (s *store) releaseOf(o owner) error {
	o.container = strings.TrimSpace(o.container)
	found := false
	err := s.each(func(name string, by owner) error {
		if by != o {
			return nil
		}
		found = true
		return s.release(name)
	})
	if found || err != nil {
		return err
	}
	return s.each(func(name string, by owner) error {
		if (by != owner{container: o.container}) {
			return nil
		}
		return s.release(name)
	})
}

func (s *store) release(name string) error {
	if err := os.Remove(s.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// resolvConf reads a file in the form of resolv.conf(5).
func resolvConf(path string) (d types.DNS, err error) {
	f, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		words := strings.Fields(line)
		if len(words) < 2 || line[0] == '#' || line[0] == ';' {
			continue
		}
		switch words[0] {
		case "nameserver":
			d.Nameservers = append(d.Nameservers, words[1])
		case "domain":
			d.Domain = words[1]
		case "search":
			d.Search = append(d.Search, words[1:]...)
		case "options":
			d.Options = append(d.Options, words[1:]...)
		}
	}
	return d, s.Err()
}
