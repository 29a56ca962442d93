// An HTTP client in Go that fetches a page from several addresses of one server, over one connection to each. For each page it
// prints the protocol, whether the connection was resumed, and the page.
//
// go-pages CA 1.2|1.3 ADDRESS...
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
)

// fetch gets a page. Connections to all addresses share the session cache of the configuration.
func fetch(config *tls.Config, address string) error {
	transport := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	answer, err := client.Get("https://" + address + "/")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s resumed: %v page: %s", answer.Proto, answer.TLS.DidResume, page)
	return err
}

func main() {
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(os.Args[1])
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		fmt.Fprintf(os.Stderr, "no certificate in %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	version := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[os.Args[2]]
	config := &tls.Config{
		ServerName:         "localhost",
		RootCAs:            roots,
		MinVersion:         version,
		MaxVersion:         version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	for _, address := range os.Args[3:] {
		if err := fetch(config, address); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", address, err)
			os.Exit(1)
		}
	}
}
