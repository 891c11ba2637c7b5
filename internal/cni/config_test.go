package cni

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth"
	"berth/engine"
)

func TestDecode(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("# none\nnameserver 10.1.0.3\nsearch a b\noptions ndots:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := decode([]byte(`{"cniVersion": "1.0.0", "name": "n", "type": "berth", "network": "front", "gwPriority": 7, "ipv6": true, "internal": true,
		"mtu": 1400, "options": {"icc": "false"}, "labels": {"a": "b"}, "cni.dev/something": [],
		"ipam": {"type": "host-local", "resolvConf": "`+resolv+`", "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}, {"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64", "rangeEnd": "fd00::9"}]]},
		"args": {"cni": {"ips": ["10.1.0.7/24"], "labels": [{"key": "k", "value": "v"}]}, "else": 1},
		"runtimeConfig": {"portMappings": [{"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "::1", "x": 1}], "mac": "02:00:00:00:00:01", "aliases": ["w"]}}`), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.takeArgs("IgnoreUnknown=1;FOO=BAR;K8S_POD_NAME=pod;IP=10.1.0.8;MAC=02:00:00:00:00:02;", false); err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr
	if want := []engine.AddrRange{{First: ip("10.1.0.9"), Last: ip("10.1.0.255")}, {First: ip("10.2.0.0"), Last: ip("10.2.0.255")}, {First: ip("fd00::"), Last: ip("fd00::9")}}; !slices.Equal(c.ipam.ranges, want) {
		t.Errorf("ranges %v, want %v", c.ipam.ranges, want)
	}
	if len(c.spec.Subnets) != 3 || c.spec.Name != "front" || !c.spec.Internal || !c.spec.IPv6 {
		t.Errorf("the network is %+v", c.spec)
	}
	if want := map[string]string{"mtu": "1400", "icc": "false"}; !maps.Equal(c.spec.Options, want) {
		t.Errorf("options %v, want %v", c.spec.Options, want)
	}
	if want := (berth.PortSpec{Protocol: berth.UDP, HostIP: ip("::1"), HostLow: 53, HostHigh: 53, Port: 5353}); len(c.ports) != 1 || c.ports[0] != want {
		t.Errorf("ports %v, want %v", c.ports, want)
	}
	if want := map[string]string{"k": "v", "K8S_POD_NAME": "pod"}; !maps.Equal(c.labels, want) {
		t.Errorf("labels %v, want %v", c.labels, want)
	}
	if !slices.Equal(c.ips, []netip.Addr{ip("10.1.0.7")}) || c.mac.String() != "02:00:00:00:00:01" {
		t.Errorf("args.cni counts more than CNI_ARGS, the capability too: %v %v", c.ips, c.mac)
	}
	if d := c.ipam.dns; !slices.Equal(d.Nameservers, []string{"10.1.0.3"}) || !slices.Equal(d.Search, []string{"a", "b"}) || !slices.Equal(d.Options, []string{"ndots:2"}) {
		t.Errorf("dns %+v", d)
	}
}

func TestAliases(t *testing.T) {
	for raw, want := range map[string][]string{`["a", "b"]`: {"a", "b"}, `{"n": ["a"], "other": ["b"]}`: {"a"}, `{}`: nil} {
		c, err := decode([]byte(`{"cniVersion": "1.0.0", "name": "n", "type": "berth", "runtimeConfig": {"aliases": `+raw+`}}`), false)
		if err != nil || !slices.Equal(c.aliases, want) {
			t.Errorf("aliases %s: %q, %v; want %q", raw, c.aliases, err, want)
		}
	}
}

// TestRefusedKeys: every key that is not heeded is refused by name, with its
// value and the reason.
func TestRefusedKeys(t *testing.T) {
	for where, keys := range map[string]map[string]key{"": topKeys, "ipam": ipamKeys, "runtimeConfig": runtimeKeys} {
		for name, k := range keys {
			if (k.set == nil) != (k.verdict == refused) {
				t.Errorf("%s.%s is %s", where, name, k.verdict)
			}
			if k.set != nil {
				continue
			}
			conf := `{"cniVersion": "1.1.0", "name": "n", "type": "berth", "` + name + `": "value"}`
			if where != "" {
				conf = `{"cniVersion": "1.1.0", "name": "n", "type": "berth", "` + where + `": {"` + name + `": "value"}}`
			}
			_, err := decode([]byte(conf), false)
			var e *Error
			if !errors.As(err, &e) || e.Code != codeUnsupported || !strings.Contains(e.Msg, name) || !strings.Contains(e.Msg, `"value"`) || e.Details != k.why || k.why == "" {
				t.Errorf("%s.%s: %v", where, name, err)
			}
			if _, err := decode([]byte(conf), true); err != nil {
				t.Errorf("%s.%s: DEL minds it: %v", where, name, err)
			}
		}
	}
}

func TestLastOf(t *testing.T) {
	for p, want := range map[string]string{"10.1.0.0/24": "10.1.0.255", "10.1.0.0/31": "10.1.0.1", "10.1.2.3/32": "10.1.2.3", "0.0.0.0/0": "255.255.255.255", "fd00::/64": "fd00::ffff:ffff:ffff:ffff", "10.16.0.0/12": "10.31.255.255"} {
		if got := lastOf(netip.MustParsePrefix(p)); got.String() != want {
			t.Errorf("the last address of %s is %s, want %s", p, got, want)
		}
	}
}

// FuzzDecode: whatever comes in, the answer is a configuration that can be used
// or one error of one line with a code.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion": "1.1.0", "name": "front", "type": "berth", "subnets": ["10.1.0.0/24", {"subnet": "fd00::/64", "gateway": "fd00::1", "range": "fd00::/80"}]}`,
		`{"cniVersion": "0.3.1", "name": "a.b", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`,
		`{"name": "n", "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "sctp", "hostIP": "::1"}], "ips": ["10.0.0.1/24", "fe80::1%eth0"], "ipRanges": [[]], "mac": "02:00:00:00:00:17"}}`,
		`{"name": "n", "args": {"cni": {"ips": ["1.2.3.4"], "labels": [{"key": "", "value": ""}]}}, "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}]}`,
		`{"name": "n", "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.9/24"}]}, "dns": {"nameservers": [1]}}`, "null", "", "{}",
	} {
		f.Add([]byte(s), "IP=10.1.0.9/24;K8S_POD_NAME=x;IgnoreUnknown=1", false)
		f.Add([]byte(s), "MAC=;=;", true)
	}
	f.Fuzz(func(t *testing.T, b []byte, args string, remove bool) {
		if strings.Contains(string(b), "resolvConf") {
			t.Skip("it reads a file")
		}
		c, err := decode(b, remove)
		if err == nil {
			err = c.takeArgs(args, remove)
		}
		if err != nil {
			e := asError(err)
			if e.Code == 0 || e.Code == codeInternal || e.Msg == "" || strings.Contains(e.Msg, "\n") {
				t.Errorf("%#v", e)
			}
			return
		}
		if berth.ValidName("network", c.network) != nil {
			t.Errorf("network %q", c.network)
		}
		if _, err := parseResult(b, c.CNIVersion); err == nil && c.prevResult != nil {
			_, _ = json.Marshal(c.prevResult)
		}
		for _, r := range c.ipam.ranges {
			if r.Last.Less(r.First) {
				t.Errorf("range %v", r)
			}
		}
		for _, p := range c.ports {
			if p.Port == 0 || p.HostLow == 0 {
				t.Errorf("port %v", p)
			}
		}
	})
}
