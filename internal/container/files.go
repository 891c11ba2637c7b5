package container

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"berth"
)

// The files that Berth lays over a container's own, in its directory.
const (
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
	hostnameFile = "hostname"
)

// writeNames writes a container's hosts, resolv.conf and hostname for the way it
// is connected. They are written in place: what is mounted is the file, not its
// name.
func (s *Service) writeNames(c *berth.Container, eps []Endpoint) error {
	kind, _ := mode(c.Net.Mode)
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	var hosts []byte
	if kind == "host" {
		if hosts, err = os.ReadFile("/etc/hosts"); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	extra, err := extraHosts(c.Net.ExtraHosts, eps)
	if err != nil {
		return err
	}
	if kind != "host" {
		hosts = hostsOf(c, eps)
	}
	for name, content := range map[string][]byte{
		hostsFile:    append(hosts, extra...),
		resolvFile:   resolvOf(c, resolv, kind == "host"),
		hostnameFile: []byte(c.Hostname + "\n"),
	} {
		if err := os.WriteFile(filepath.Join(s.dir(c.ID), name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostsOf are the names that every container knows, and its own at each of its
// addresses.
func hostsOf(c *berth.Container, eps []Endpoint) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, e := range eps {
		for _, a := range e.Addrs {
			fmt.Fprintf(&b, "%s\t%s\n", a.Addr(), c.Hostname)
		}
	}
	if len(eps) == 0 {
		fmt.Fprintf(&b, "127.0.0.1\t%s\n", c.Hostname)
	}
	return b.Bytes()
}

// extraHosts are the lines of --add-host.
func extraHosts(entries []string, eps []Endpoint) ([]byte, error) {
	var b bytes.Buffer
	for _, e := range entries {
		name, addr, ok := strings.Cut(e, ":")
		if !ok {
			return nil, fmt.Errorf("host %q: it is NAME:ADDRESS: %w", e, berth.ErrInvalid)
		}
		addrs := []string{strings.Trim(addr, "[]")}
		if addr == "host-gateway" {
			addrs = nil
			for _, ep := range eps {
				addrs = append(addrs, ep.Gateways...)
			}
		}
		for _, a := range addrs {
			fmt.Fprintf(&b, "%s\t%s\n", a, name)
		}
	}
	return b.Bytes(), nil
}

// resolvOf is a container's resolv.conf: the host's, changed as asked for. A
// resolver at the host's own loopback is none to a container with a network of
// its own; without any it is told public ones, as docker does.
func resolvOf(c *berth.Container, host []byte, own bool) []byte {
	var servers, search, options []string
	lines := bufio.NewScanner(bytes.NewReader(host))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) < 2:
		case f[0] == "nameserver":
			if a, err := netip.ParseAddr(f[1]); own || err == nil && !a.IsLoopback() {
				servers = append(servers, f[1])
			}
		case f[0] == "search" || f[0] == "domain":
			search = f[1:]
		case f[0] == "options":
			options = f[1:]
		}
	}
	if len(c.Net.DNS) > 0 {
		servers = nil
		for _, a := range c.Net.DNS {
			servers = append(servers, a.String())
		}
	}
	if len(servers) == 0 && !own {
		servers = []string{"8.8.8.8", "8.8.4.4"}
	}
	if len(c.Net.DNSSearch) > 0 {
		search = c.Net.DNSSearch
	}
	if len(c.Net.DNSOptions) > 0 {
		options = c.Net.DNSOptions
	}
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 && !(len(search) == 1 && search[0] == ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}

// mode splits a network mode: "container:web" is "container" and "web".
func mode(s string) (kind, arg string) {
	kind, arg, _ = strings.Cut(s, ":")
	return kind, arg
}
