package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// TestMatrix asks every command in every version of configurations of several
// kinds, and holds the answers against the specification of that version.
func TestMatrix(t *testing.T) {
	configs := map[string]string{
		"both families": `"subnets": ["10.1.0.0/24", "fd00:1::/64"]`,
		"IPv6 only":     `"ipv4": false, "ipv6": true`,
		"from a pool":   `"mtu": 1400`,
		"internal":      `"internal": true, "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.254"}]`,
		"host-local":    `"ipam": {"type": "host-local", "subnet": "10.1.0.0/16", "rangeStart": "10.1.2.3", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]}`,
		"capabilities":  `"dns": {"nameservers": ["10.1.0.1"], "search": ["example.org"]}, "runtimeConfig": {"mac": "02:00:00:00:00:17", "aliases": ["a"], "portMappings": [{"hostPort": 8888, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"}]}`,
		"labels":        `"args": {"cni": {"ips": ["10.1.0.9/24"], "labels": [{"key": "app", "value": "x"}]}, "other": {"a": [1]}}, "subnets": ["10.1.0.0/24"], "capabilities": {"mac": true}`,
	}
	for kind, keys := range configs {
		for _, v := range versions {
			t.Run(kind+" "+v, func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				web := n.pod(t, "web", fmt.Sprintf(`{"cniVersion": %q, "name": "net", "type": "berth", %s}`, v, keys))
				gc := slices.Index(versions, v) == 4
				if gc {
					n.silent(t, web.as("STATUS"))
				} else {
					n.refused(t, web.as("STATUS"), 1, v)
				}
				out := n.ok(t, web.as("ADD"))
				checkResult(t, v, out, web)
				if kind == "capabilities" && !contains(out, "10.1.0.1", "example.org", "02:00:00:00:00:17") {
					t.Errorf("what was asked for is not in %s", out)
				}
				full := web.with(t, "prevResult", out)
				if v == "0.3.0" || v == "0.3.1" {
					n.refused(t, full.as("CHECK"), 1, v)
				} else {
					n.silent(t, full.as("CHECK"))
					n.refused(t, full.with(t, "prevResult", strings.Replace(out, `"eth0"`, `"eth9"`, 1)).as("CHECK"), 102, "eth0")
				}
				n.refused(t, web.as("ADD"), 100, "already")
				if gc {
					n.silent(t, web.as("STATUS"))
					n.silent(t, web.with(t, "cni.dev/valid-attachments", `[{"containerID": "web", "ifname": "eth0"}]`).as("GC"))
					n.silent(t, full.as("CHECK"))
				} else {
					n.refused(t, web.as("GC"), 1, v)
				}
				n.silent(t, full.as("DEL"))
				n.silent(t, web.as("DEL"))
				if v != "0.3.0" && v != "0.3.1" {
					n.refused(t, full.as("CHECK"), 3, "web")
				}
				n.clean(t)
			})
		}
	}
}

// silent executes the plugin, which must neither fail nor say anything.
func (n *node) silent(t *testing.T, a ask) {
	t.Helper()
	if out := n.ok(t, a); out != "" {
		t.Errorf("%s answered %q; it has no answer", a.command, out)
	}
}

// checkResult holds a result against the specification's tables: every key is
// one of its version, of its type, and says what can be.
func checkResult(t *testing.T, version, out string, a ask) {
	t.Helper()
	old := version < "1.0.0"
	r := object(t, "result", out, map[string]bool{"cniVersion": true, "interfaces": true, "ips": true, "routes": false, "dns": false})
	if string(r["cniVersion"]) != fmt.Sprintf("%q", version) {
		t.Errorf("cniVersion %s", r["cniVersion"])
	}
	mine := -1
	for i, raw := range list(t, r["interfaces"]) {
		keys := map[string]bool{"name": true, "mac": true, "sandbox": false}
		if version == "1.1.0" {
			keys["mtu"] = true
		}
		l := object(t, "interface", raw, keys)
		if string(l["name"]) == `"eth0"` && string(l["sandbox"]) == fmt.Sprintf("%q", a.netns) {
			mine = i
		} else if _, ok := l["sandbox"]; ok {
			t.Errorf("a link of the host has a sandbox: %s", raw)
		}
	}
	if mine != 2 {
		t.Errorf("eth0 is interface %d, after bridge and host end it is 2", mine)
	}
	for _, raw := range list(t, r["ips"]) {
		keys := map[string]bool{"address": true, "gateway": false, "interface": true}
		if old {
			keys["version"] = true
		}
		ip := object(t, "address", raw, keys)
		var s string
		unmarshal(t, ip["address"], &s)
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Errorf("address %s: %v", raw, err)
		}
		if old && string(ip["version"]) != map[bool]string{true: `"4"`, false: `"6"`}[p.Addr().Is4()] {
			t.Errorf("version of %s", raw)
		}
		if string(ip["interface"]) != fmt.Sprint(mine) {
			t.Errorf("interface of %s, eth0 is %d", raw, mine)
		}
		if gw, ok := ip["gateway"]; ok {
			unmarshal(t, gw, &s)
			if a, err := netip.ParseAddr(s); err != nil || !p.Contains(a) {
				t.Errorf("gateway of %s", raw)
			}
		}
	}
	if routes, ok := r["routes"]; ok {
		for _, raw := range list(t, routes) {
			object(t, "route", raw, map[string]bool{"dst": true, "gw": false})
		}
	}
	if dns, ok := r["dns"]; ok {
		object(t, "dns", string(dns), map[string]bool{"nameservers": false, "domain": false, "search": false, "options": false})
	}
}

// object decodes an object that has the keys that must be, and no others than
// may be.
func object(t *testing.T, what, raw string, keys map[string]bool) (o map[string]json.RawMessage) {
	t.Helper()
	unmarshal(t, []byte(raw), &o)
	for k, must := range keys {
		if _, ok := o[k]; must && !ok {
			t.Errorf("%s without %s: %s", what, k, raw)
		}
	}
	for k := range o {
		if _, ok := keys[k]; !ok {
			t.Errorf("%s with %s: %s", what, k, raw)
		}
	}
	return o
}

func list(t *testing.T, raw json.RawMessage) (out []string) {
	t.Helper()
	var l []json.RawMessage
	unmarshal(t, raw, &l)
	for _, one := range l {
		out = append(out, string(one))
	}
	return out
}

func unmarshal(t *testing.T, raw []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Errorf("decode %s: %v", raw, err)
	}
}

// TestVersionChanges removes with 1.1.0 what was added with 0.3.1, and the
// other way round.
func TestVersionChanges(t *testing.T) {
	n := newNode(t)
	for i, pair := range [][2]string{{"0.3.1", "1.1.0"}, {"1.1.0", "0.3.0"}, {"0.4.0", "1.0.0"}} {
		old := n.pod(t, fmt.Sprintf("c%d", i), front(pair[0], ""))
		out := n.ok(t, old.as("ADD"))
		now := old
		now.conf = front(pair[1], "")
		if pair[1] >= "0.4.0" {
			n.silent(t, now.with(t, "prevResult", out).as("CHECK"))
		}
		n.silent(t, now.with(t, "prevResult", out).as("DEL"))
		n.must(t, fmt.Sprintf("test -z \"$(ip -n c%d -o link show type veth)\"", i))
	}
	n.clean(t)
}

// TestVersion asks for the versions.
func TestVersion(t *testing.T) {
	n := newNode(t)
	for _, v := range append(versions, "0.1.0", "") {
		out := n.ok(t, ask{command: "VERSION", conf: fmt.Sprintf(`{"cniVersion": %q}`, v)})
		var got struct {
			CNIVersion        string
			SupportedVersions []string
		}
		unmarshal(t, []byte(out), &got)
		want := v
		if !slices.Contains(versions, v) {
			want = "1.1.0"
		}
		if got.CNIVersion != want || !slices.Equal(got.SupportedVersions, versions) {
			t.Errorf("asked in %q it answered %s", v, out)
		}
	}
	// Standard input that never ends.
	n.must(t, "mkfifo /run/in && exec 3<>/run/in && CNI_COMMAND=VERSION "+n.dir+"/cni/berth <&3 | grep -q 0.3.0")
}
