package hostlocal

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func load(t *testing.T, dir, ipam, more string) *Config {
	t.Helper()
	c, err := Load([]byte(fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "n", "ipam": {"dataDir": %q, %s}%s}`, dir, ipam, more)), "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func addrs(t *testing.T, c *Config, container string) (all []string) {
	t.Helper()
	r, err := Add(c, container, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range r.IPs {
		all = append(all, ip.Address.String())
	}
	return all
}

// TestTurns hands out the addresses of a set in turn, from the one after the
// last, and not the gateways.
func TestTurns(t *testing.T) {
	c := load(t, t.TempDir(), `"ranges": [[{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.5"}, {"subnet": "10.2.0.0/30"}], [{"subnet": "fd00::/64"}]]`, "")
	var got []string
	for i := range 3 {
		got = append(got, addrs(t, c, fmt.Sprint(i))...)
	}
	want := []string{"10.1.0.5/29", "fd00::2/64", "10.1.0.6/29", "fd00::3/64", "10.2.0.2/30", "fd00::4/64"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := Add(c, "more", "eth0"); err == nil || !strings.Contains(err.Error(), "10.1.0.5-10.1.0.6,10.2.0.1-10.2.0.2") {
		t.Errorf("of a full set: %v", err)
	}
	if err := Status(c); err == nil {
		t.Error("STATUS of a full set is no error")
	}
	if err := Del(c, "0", "eth0"); err != nil {
		t.Fatal(err)
	}
	if got := addrs(t, c, "again"); got[0] != "10.1.0.5/29" || got[1] != "fd00::5/64" {
		t.Errorf("after one was given back: %q", got)
	}
}

// TestAsked gives the addresses that are asked for, all or none.
func TestAsked(t *testing.T) {
	dir := t.TempDir()
	const ranges = `"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]`
	if got := addrs(t, load(t, dir, ranges, `, "runtimeConfig": {"ips": ["10.2.0.9/24"]}`), "a"); !slices.Equal(got, []string{"10.1.0.2/24", "10.2.0.9/24"}) {
		t.Errorf("%q", got)
	}
	for asked, why := range map[string]string{
		`"10.2.0.9"`: "not available", `"10.2.0.1"`: "subnet's gateway", `"10.3.0.1"`: "failed to allocate all requested IPs: 10.3.0.1",
		`"10.1.0.7", "10.2.0.9"`: "not available",
	} {
		_, err := Add(load(t, dir, ranges, `, "args": {"cni": {"ips": [`+asked+`]}}`), "b", "eth0")
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", asked, err, why)
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, "n", "10.*"))
	if err != nil || len(names) != 2 {
		t.Errorf("what failed has kept addresses: %q, %v", names, err)
	}
	c, err := Load([]byte(`{"cniVersion": "1.0.0", "name": "n", "ipam": {"dataDir": "`+dir+`", `+ranges+`}}`), "IP=10.1.0.33;IgnoreUnknown=1")
	if err != nil {
		t.Fatal(err)
	}
	if got := addrs(t, c, "c"); got[0] != "10.1.0.33/24" {
		t.Errorf("IP of CNI_ARGS: %q", got)
	}
}

// TestOwners reads what older versions wrote, and white space.
func TestOwners(t *testing.T) {
	dir := t.TempDir()
	c := load(t, dir, `"subnet": "10.1.0.0/24"`, "")
	if err := Del(c, "nobody", "eth0"); err != nil {
		t.Errorf("without a directory: %v", err)
	}
	if Check(c, "nobody", "eth0") == nil {
		t.Error("nobody has an address")
	}
	addrs(t, c, " web ")
	put := func(addr, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "n", addr), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("10.1.0.50", "old\n")
	put("10.1.0.51", "web\r\neth1")
	put("10.1.0.52", "web\r\neth0\r\n\t")
	for _, who := range [][2]string{{"old", "eth0"}, {"web", "eth1"}, {"web", "eth0"}} {
		if err := Check(c, who[0], who[1]); err != nil {
			t.Error(err)
		}
		if err := Del(c, who[0], who[1]); err != nil {
			t.Error(err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "n", "10.*")); len(names) > 0 {
		t.Errorf("left: %q", names)
	}
	addrs(t, c, "a")
	addrs(t, c, "b")
	if err := GC(c, []types.GCAttachment{{ContainerID: "b", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	if Check(c, "a", "eth0") == nil || Check(c, "b", "eth0") != nil {
		t.Error("GC keeps what is not in the list, or not what is")
	}
}

// TestAtOnce lets many ask at once: nobody gets what another has.
func TestAtOnce(t *testing.T) {
	c := load(t, t.TempDir(), `"subnet": "10.1.0.0/24"`, "")
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for i := range 100 {
		wg.Go(func() {
			got := addrs(t, c, fmt.Sprint(i))
			mu.Lock()
			defer mu.Unlock()
			seen[got[0]] = true
		})
	}
	wg.Wait()
	if len(seen) != 100 {
		t.Errorf("%d different addresses of 100", len(seen))
	}
}

func TestRefused(t *testing.T) {
	for ipam, why := range map[string]string{
		`"subnet": "10.1.0.1/24"`:                                                   "host bits set",
		`"subnet": "10.1.0.0/31"`:                                                   "too small",
		`"subnet": "10.1.0.0"`:                                                      "invalid CIDR",
		`"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"`:                         "RangeStart 10.2.0.1 not in network 10.1.0.0/24",
		`"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.1"`:                           "RangeEnd 10.2.0.1 not in network 10.1.0.0/24",
		`"subnet": "10.1.0.0/24", "gateway": "x"`:                                   "invalid IP address: x",
		`"ranges": []`:                                                              "no IP ranges specified",
		`"ranges": [[]]`:                                                            "empty range set",
		`"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]`:          "mixed address families",
		`"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]`:      "range set 0 overlaps with 1",
		`"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/16"}]]`:        "overlap",
		`"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"`: "before RangeStart",
	} {
		if _, err := Load([]byte(`{"cniVersion": "1.0.0", "name": "n", "ipam": {`+ipam+`}}`), ""); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", ipam, err, why)
		}
	}
	if _, err := Load([]byte(`{"cniVersion": "0.2.0", "name": "n", "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}}`), ""); err == nil {
		t.Error("two addresses of one family in 0.2.0")
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 9.9.9.9\nnameserver 192.0.2.1\n; x\nnameserver fd00::1\ndomain a.test\nsearch b.test c.test\noptions ndots:2 rotate\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := resolvConf(path)
	if err != nil || !slices.Equal(d.Nameservers, []string{"192.0.2.1", "fd00::1"}) || d.Domain != "a.test" ||
		!slices.Equal(d.Search, []string{"b.test", "c.test"}) || !slices.Equal(d.Options, []string{"ndots:2", "rotate"}) {
		t.Errorf("%+v, %v", d, err)
	}
}

// FuzzTurns holds the order against one that counts.
func FuzzTurns(f *testing.F) {
	f.Add(uint8(2), uint8(5), uint8(3))
	f.Fuzz(func(t *testing.T, first, last, from uint8) {
		at := func(n uint8) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, n}) }
		if last < first || last == 255 {
			t.Skip()
		}
		s := set{{netip.MustParsePrefix("10.0.0.0/24"), at(first), at(last), at(1)}}
		var got []netip.Addr
		for a := range s.after(at(from)) {
			got = append(got, a)
		}
		n := int(last) - int(first) + 1
		if first <= 1 && last >= 1 {
			n--
		}
		seen := map[netip.Addr]bool{}
		for _, a := range got {
			seen[a] = true
		}
		if len(got) != n || len(seen) != n || seen[at(1)] {
			t.Errorf("from %d in %d-%d: %v", from, first, last, got)
		}
	})
}
